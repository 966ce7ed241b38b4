from __future__ import annotations

import contextlib
import gc
import math
import pickle
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import pytest

from shoal.errors import DeserializationError, TaskCancelledError, UnserializableError
from shoal.serial import Hooks, Serialized, deserialize, deserialize_args, serialize, serialize_args
from tests.serial.ways import WAYS, Way

KIB = 1024


class Colour(Enum):
    RED = 1


Point = namedtuple("Point", "x y")


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    parent: Node | None = field(default=None, compare=False)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a = a
        self.b = b


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63,
        10**400,
        1.5,
        float("inf"),
        1 + 2j,
        "",
        "häß \U0001f41f",
        "\udc80 lone surrogate",
        b"",
        b"\0\xff",
        bytearray(b"abc"),
        (),
        [],
        {},
        set(),
        frozenset([1, 2]),
        (1, [2, {3: (4, {5})}]),
        range(3, 9, 2),
        slice(1, None),
        ...,
        NotImplemented,
        int,
        len,
        Colour.RED,
        Point(1, 2),
        Fraction(1, 3),
        Decimal("1.50"),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        Counter("abca"),
        deque([1, 2], maxlen=5),
    ],
    ids=repr,
)
def test_values_come_back_equal_and_of_the_same_type(way: Way, value: Any) -> None:
    back = way(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("way", WAYS)
def test_nan_and_minus_zero(way: Way) -> None:
    nan, zero = way((float("nan"), -0.0))
    assert math.isnan(nan)
    assert str(zero) == "-0.0"


@pytest.mark.parametrize("way", WAYS)
def test_cycles_and_shared_parts(way: Way) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    back = way(loop)
    assert back[1] is back

    shared = [1]
    first, second = way((shared, shared))
    assert first is second

    root = Node("root")
    root.children.append(Node("leaf", parent=root))
    back = way(root)
    assert back.children[0].parent is back


@pytest.mark.parametrize("way", WAYS)
def test_slots(way: Way) -> None:
    back = way(Slotted(1, [Slotted(2, 3)]))
    assert (back.a, back.b[0].b) == (1, 3)


def test_simple_values_are_a_plain_pickle_without_buffers_or_references() -> None:
    for value in (None, True, 7, 2.5, "text", b"bytes"):
        serialized = serialize(value)
        assert serialized.data == pickle.dumps(value, 5)
        assert not serialized.buffers
        assert not serialized.refs


def test_size_bytes_counts_header_stream_padding_and_buffers() -> None:
    assert serialize(None).size_bytes == 24 + len(pickle.dumps(None, 5))
    large = serialize([b"x" * 70_000, b"y" * 70_001])
    header = 24 + 2 * 16 + len(large.data)
    first = -(-header // 64) * 64
    second = -(-(first + 70_000) // 64) * 64
    assert large.size_bytes == second + 70_001


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 300 * KIB])
def test_bytes_of_any_size(way: Way, kind: type, size: int) -> None:
    large = kind(b"ab" * (size // 2) + b"c" * (size % 2))
    for value in (large, [large], [1, large, "x", large, kind(large[::-1])], {"k": (large,)}):
        back = way(value)
        assert back == value
        inner = back if type(back) is kind else back[0] if type(back) is list else None
        assert inner is None or inner == 1 or type(inner) is kind


@pytest.mark.parametrize("way", WAYS)
def test_large_bytes_between_other_large_things(way: Way) -> None:
    text = "z" * (100 * KIB)
    many = [str(i) for i in range(30_000)]  # a stream of several frames
    value = (many, b"1" * (80 * KIB), text, bytearray(b"2" * (90 * KIB)), many, b"3" * (70 * KIB))
    assert way(value) == value


def test_large_bytes_are_not_copied_into_the_stream() -> None:
    blob = b"x" * (1024 * KIB)
    array = bytearray(blob)
    serialized = serialize({"blob": blob, "array": array})
    assert len(serialized.data) < 200
    assert [buffer.obj for buffer in serialized.buffers] == [blob, array]
    assert serialized.buffers[0].obj is blob
    assert serialized.buffers[1].obj is array


@pytest.mark.parametrize("way", WAYS)
def test_the_same_large_bytes_twice_are_sent_once_and_stay_one_object(way: Way) -> None:
    blob = b"x" * (100 * KIB)
    assert len(serialize([blob, blob]).buffers) == 1
    first, second = way([blob, blob])
    assert first is second


@pytest.mark.parametrize("way", WAYS)
def test_bytes_that_look_like_an_announcement_of_bytes(way: Way) -> None:
    # The stream before a large bytes object ends with its length. Here the value itself ends so.
    inner = b"B" + (100 * KIB).to_bytes(4, "little")
    value = [inner, b"x" * (100 * KIB), inner * 20_000, b"x" * (100 * KIB)]
    assert way(value) == value


# --- arguments ---------------------------------------------------------------------------------------------


def test_no_arguments_are_no_bytes() -> None:
    assert serialize_args((), {}).data == b""
    assert deserialize_args(b"") == ((), {})


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((None,), {}),
        (("text",), {}),
        (("long " * 20_000,), {}),
        ((b"x" * 200_000,), {}),
        (([1],), {}),
        (((),), {}),
        ((1, "a", None), {}),
        ((), {"a": 1}),
        ((1, 2), {"a": [3], "b": {"c": 4}}),
        (([(), {}],), {}),
    ],
    ids=lambda part: repr(part)[:20],
)
def test_arguments_come_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    serialized = serialize_args(args, kwargs)
    assert deserialize_args(serialized.data, serialized.buffers) == (args, kwargs)


# --- the pool of picklers ----------------------------------------------------------------------------------


class SerializesItself:
    """Its reduction serializes something else, as a reference to a stored value would."""

    def __init__(self, hooks: Hooks, inner: Any) -> None:
        self.hooks = hooks
        self.inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        serialized = serialize(self.inner, hooks=self.hooks)
        return deserialize, (serialized.data, [bytes(b) for b in serialized.buffers])


def test_a_reduction_may_serialize(hooks: Hooks) -> None:
    innermost = ["deep", b"x" * 100_000]
    nested = SerializesItself(hooks, [SerializesItself(hooks, innermost), "middle"])
    serialized = serialize([1, nested, nested, 2], hooks=hooks)
    back = deserialize(serialized.data, serialized.buffers)
    assert back == [1, [innermost, "middle"], [innermost, "middle"], 2]


class Fails:
    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("not me")


def test_a_failure_midway_leaves_nothing_behind(hooks: Hooks) -> None:
    class Ref:
        pass

    hooks.register_ref_type(Ref, lambda _: (list, ()))
    for _ in range(3):
        with pytest.raises(UnserializableError):
            serialize([b"x" * 100_000, Ref(), Fails()], hooks=hooks)
        serialized = serialize(["fine"], hooks=hooks)
        assert serialized.data == pickle.dumps(["fine"], 5)
        assert not serialized.buffers
        assert not serialized.refs


@pytest.mark.parametrize("fails", [False, True])
def test_values_are_let_go_at_once(hooks: Hooks, fails: bool) -> None:
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    gc.disable()  # no cycle may have to be found before the value goes
    try:
        with contextlib.suppress(UnserializableError):
            serialize([value, Fails()] if fails else [value], hooks=hooks)
        del value
        assert gone() is None
    finally:
        gc.enable()


def test_picklers_are_reused_and_remember_nothing(hooks: Hooks) -> None:
    value = ["abc", {"k": "abc"}]
    first = serialize(value, hooks=hooks)
    assert len(hooks.idle_picklers) == 1
    pickler = hooks.idle_picklers[0]
    assert serialize(value, hooks=hooks).data == first.data
    assert list(hooks.idle_picklers) == [pickler]


def test_a_pickler_that_saw_much_is_not_kept(hooks: Hooks) -> None:
    serialize(list(range(10_000)), hooks=hooks)
    assert not hooks.idle_picklers


def test_threads_do_not_share_picklers(hooks: Hooks) -> None:
    wrong: list[Any] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for i in range(500):
            value = [number, i, {"k": [number] * 5}]
            if deserialize(serialize(value, hooks=hooks).data) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- errors that are not about the value -------------------------------------------------------------------


@pytest.mark.parametrize("raised", [MemoryError("full"), TaskCancelledError(), KeyboardInterrupt()])
def test_errors_that_are_not_about_the_value_pass(raised: BaseException) -> None:
    class Raises:
        def __reduce__(self) -> tuple[Any, ...]:
            raise raised

    with pytest.raises(type(raised)) as caught:
        serialize([Raises()])
    assert caught.value is raised
    with pytest.raises(type(raised)):
        serialize_args((Raises(),), {})


def test_a_stream_that_ends_early() -> None:
    data = serialize(["a", "b"]).data
    with pytest.raises(DeserializationError, match="A value arrived, but could not be rebuilt"):
        deserialize(data[:-3])
    with pytest.raises(
        DeserializationError, match="The arguments of a call arrived, but could not"
    ):
        deserialize_args(data[:-3])
    with pytest.raises(
        DeserializationError, match=r"The arguments of f\(\) arrived, but could not"
    ):
        deserialize_args(data[:-3], target="f")


def test_the_record_is_cheap_and_immutable() -> None:
    record = Serialized(b"data")
    with pytest.raises(AttributeError):
        record.data = b""  # type: ignore[misc]  # that it is refused is the point
