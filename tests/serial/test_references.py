"""Whatever the runtime calls a reference is found wherever it hides, once, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serial import (
    Hooks,
    deserialize,
    deserialize_args,
    serialize,
    serialize_args,
    serialize_function,
)


class Ref:
    """Like the runtime's: equal and hashable by the id of its object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.number == self.number

    def __repr__(self) -> str:
        return f"Ref({self.number})"


class NamedRef(Ref):
    """A kind of reference that nobody registered."""


class Handle:
    def __init__(self, name: str) -> None:
        self.name = name


def rebuild_ref(number: int) -> Ref:
    return Ref(number)


@dataclass
class Holder:
    held: Any


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class WithState:
    def __init__(self, held: Any) -> None:
        self.hidden = held

    def __getstate__(self) -> dict[str, Any]:
        return {"only": [self.hidden]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.hidden = state["only"][0]


@pytest.fixture
def ref_hooks(hooks: Hooks) -> Hooks:
    hooks.register_ref_type(Ref, lambda ref: (rebuild_ref, (ref.number,)))
    hooks.register_ref_type(Handle, lambda handle: (Handle, (handle.name,)))
    return hooks


def in_closure(value: Any) -> Callable[[], Any]:
    def inner() -> Any:
        def innermost() -> Any:
            return value

        return innermost

    return inner


def in_default(value: Any) -> Callable[..., Any]:
    return lambda x=value, *, y=value: (x, y)


def in_local_class(value: Any) -> type:
    class Local:
        held = value

        def method(self) -> Any:
            return value

    return Local


PLACES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda r: r,
    "list": lambda r: [1, [r]],
    "tuple": lambda r: (r,),
    "dict value": lambda r: {"k": {"l": r}},
    "dict key": lambda r: {r: 1},
    "set": lambda r: {r},
    "frozenset": lambda r: frozenset([r]),
    "dataclass": Holder,
    "slots": Slotted,
    "state": WithState,
    "closure of a closure": in_closure,
    "default": in_default,
    "local class": in_local_class,
    "instance of a local class": lambda r: in_local_class(r)(),
    "bound method": lambda r: Holder(r).__repr__,
    "partial": lambda r: functools.partial(print, r, end=r),
    "exception": lambda r: ValueError("x", [r]),
}


@pytest.mark.parametrize("place", PLACES)
def test_references_are_found(ref_hooks: Hooks, place: str) -> None:
    ref = Ref(7)
    serialized = serialize(PLACES[place](ref), hooks=ref_hooks)
    assert serialized.refs == [ref]
    assert serialized.refs[0] is ref
    deserialize(serialized.data, serialized.buffers)


def test_references_come_back_where_they_were(ref_hooks: Hooks) -> None:
    value = {"k": [Ref(1), Holder(Ref(2))], Ref(3): in_closure(Ref(4))}
    back = deserialize(serialize(value, hooks=ref_hooks).data)
    assert back["k"][0] == Ref(1)
    assert back["k"][1].held == Ref(2)
    assert back[Ref(3)]()() == Ref(4)


def test_order_of_first_appearance_each_once(ref_hooks: Hooks) -> None:
    handle = Handle("actor")
    value = [Ref(3), Ref(1), handle, Ref(3), [Ref(2), Ref(1)], handle]
    serialized = serialize(value, hooks=ref_hooks)
    assert serialized.refs == [Ref(3), Ref(1), handle, Ref(2)]
    assert serialized.refs[0] is value[0]


def test_subclasses_of_a_reference_are_references(ref_hooks: Hooks) -> None:
    serialized = serialize([NamedRef(1), NamedRef(2)], hooks=ref_hooks)
    assert serialized.refs == [NamedRef(1), NamedRef(2)]
    assert type(deserialize(serialized.data)[0]) is Ref  # as its reducer says


def test_references_between_large_buffers(ref_hooks: Hooks) -> None:
    value = [b"x" * 100_000, Ref(1), bytearray(b"y" * 200_000), Ref(2)]
    serialized = serialize(value, hooks=ref_hooks)
    assert serialized.refs == [Ref(1), Ref(2)]
    assert len(serialized.buffers) == 2
    assert deserialize(serialized.data, serialized.buffers) == value


def test_in_arguments_and_functions(ref_hooks: Hooks) -> None:
    serialized = serialize_args(([Ref(1)],), {"k": {"r": Ref(2)}}, hooks=ref_hooks)
    assert serialized.refs == [Ref(1), Ref(2)]
    args = deserialize_args(serialized.data)
    assert args == (([Ref(1)],), {"k": {"r": Ref(2)}})
    assert serialize_function(in_closure(Ref(5)), hooks=ref_hooks).refs == [Ref(5)]


class SerializesARef:
    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks

    def __reduce__(self) -> tuple[Any, ...]:
        serialized = serialize([Ref(99)], hooks=self.hooks)
        assert serialized.refs == [Ref(99)]
        return deserialize, (serialized.data,)


def test_a_serialization_inside_keeps_its_references_to_itself(ref_hooks: Hooks) -> None:
    value = [Ref(1), SerializesARef(ref_hooks), Ref(2)]
    assert serialize(value, hooks=ref_hooks).refs == [Ref(1), Ref(2)]


trees = st.recursive(
    st.integers(0, 9).map(Ref) | st.integers() | st.text(max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        inner.map(Holder),
        inner.map(in_closure),
    ),
    max_leaves=15,
)


def refs_of(value: Any) -> list[Ref]:
    """What a plain walk finds, in the order of pickling."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in refs_of(item)]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in refs_of(item)]
    if isinstance(value, Holder):
        return refs_of(value.held)
    if callable(value):
        return refs_of(value()())
    return []


@given(value=trees)
def test_any_tree(value: Any) -> None:
    hooks = Hooks()
    hooks.register_ref_type(Ref, lambda ref: (rebuild_ref, (ref.number,)))
    serialized = serialize(value, hooks=hooks)
    assert list(serialized.refs) == list(dict.fromkeys(refs_of(value)))
    assert refs_of(deserialize(serialized.data)) == refs_of(value)
