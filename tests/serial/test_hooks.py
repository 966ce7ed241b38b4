from __future__ import annotations

import threading
from typing import Any

import pytest

from shoal.errors import UnserializableError
from shoal.serial import (
    HOOKS,
    Hooks,
    deregister_serializer,
    deserialize,
    register_rebuilder,
    register_serializer,
    serialize,
)
from tests.serial.ways import in_message


class Connection:
    """Cannot be pickled by itself."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.Lock()


class Secure(Connection):
    pass


def reconnect(address: str) -> Connection:
    return Connection(address)


def test_a_registered_serializer_is_used_at_any_depth(hooks: Hooks) -> None:
    hooks.register_serializer(Connection, serializer=lambda c: c.address, deserializer=reconnect)
    back = in_message({"k": [Connection("there")]}, hooks)["k"][0]
    assert isinstance(back, Connection)
    assert back.address == "there"


def test_the_deserializer_may_be_a_lambda(hooks: Hooks) -> None:
    hooks.register_serializer(
        Connection, serializer=lambda c: c.address, deserializer=lambda a: ["made from", a]
    )
    assert in_message(Connection("there"), hooks) == ["made from", "there"]


def test_it_is_for_the_exact_type(hooks: Hooks) -> None:
    hooks.register_serializer(Connection, serializer=lambda c: c.address, deserializer=reconnect)
    with pytest.raises(UnserializableError):
        serialize(Secure("x"), hooks=hooks)


def test_the_last_registration_counts_and_deregistering_removes_all(hooks: Hooks) -> None:
    hooks.register_serializer(Connection, serializer=lambda _: 1, deserializer=lambda n: n)
    hooks.register_serializer(Connection, serializer=lambda _: 2, deserializer=lambda n: n)
    assert in_message(Connection("x"), hooks) == 2
    hooks.deregister_serializer(Connection)
    with pytest.raises(UnserializableError, match="lock"):
        serialize(Connection("x"), hooks=hooks)
    hooks.deregister_serializer(Connection)  # nothing there any more: nothing happens


def test_what_it_returns_is_serialized_like_any_value(hooks: Hooks) -> None:
    class Ref:
        pass

    hooks.register_ref_type(Ref, lambda _: (list, ()))
    hooks.register_serializer(
        Connection, serializer=lambda _: (Ref(), b"x" * 100_000), deserializer=len
    )
    serialized = serialize(Connection("x"), hooks=hooks)
    assert len(serialized.refs) == len(serialized.buffers) == 1
    assert deserialize(serialized.data, serialized.buffers) == 2


def test_the_functions_of_the_module_use_the_hooks_of_the_process() -> None:
    register_serializer(Connection, serializer=lambda c: c.address, deserializer=reconnect)
    try:
        assert in_message(Connection("there")).address == "there"
        with pytest.raises(UnserializableError):
            serialize(Connection("there"), hooks=Hooks())
    finally:
        deregister_serializer(Connection)
    assert Connection not in HOOKS.by_type


@pytest.mark.parametrize("cls", [int, list, dict, bytes, type(None)])
def test_types_that_pickle_writes_itself_are_refused(hooks: Hooks, cls: type) -> None:
    with pytest.raises(TypeError, match="asks nobody"):
        hooks.register_serializer(cls, serializer=str, deserializer=str)


def test_what_is_no_class_is_refused(hooks: Hooks) -> None:
    instance: Any = Connection("x")
    with pytest.raises(TypeError, match="needs a class"):
        hooks.register_serializer(instance, serializer=str, deserializer=str)


def test_a_rebuilder_needs_a_number_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.4095"):
        register_rebuilder(reconnect, 4096)
    with pytest.raises(ValueError, match="already"):
        register_rebuilder(reconnect, 0)  # that of arrays
