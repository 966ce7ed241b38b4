"""The store of one process, with the quotas of a node that answers at once: no request waits while there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.core.quotas import Granted, StoreQuotas, Wanted
from shoal.errors import ObjectStoreFullError
from shoal.messages.stores import QuotaGranted, QuotaReturn
from shoal.messages.values import Stored
from shoal.runtime.storage import ObjectStore
from shoal.serial import serialize

MB = 1 << 20
CAPACITY = 100 * MB
CHUNK = 64 * MB
TIMEOUT_NS = 10**9


class Node:
    """The node's quotas without the node. Whoever has to wait is refused, as if the time were up."""

    def __init__(self) -> None:
        self.quotas = StoreQuotas(CAPACITY, CHUNK, TIMEOUT_NS)
        self.stores: dict[str, ObjectStore] = {}
        self.requests = 0
        self.waits = 0

    def link(self, name: str) -> Link:
        return Link(self, name)

    def request(self, name: str, needed: int) -> QuotaGranted:
        self.requests += 1
        req, outbox = self.requests, self.quotas.outbox
        self.quotas.on_request(name, name, req, needed, 0)
        while True:
            while outbox:
                effect = outbox.pop(0)
                if isinstance(effect, Wanted):
                    self.stores[str(effect.holder)].give_back(effect.wanted, effect.itself)
                else:
                    assert isinstance(effect, Granted)
                    assert effect.req == req
                    return QuotaGranted(req, effect.granted, effect.explanation)
            self.waits += 1
            self.quotas.on_tick(TIMEOUT_NS)


class Link:
    """What a store sees of the node."""

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._name = name

    def request(self, make: Callable[[int], Any], kind: type[QuotaGranted]) -> QuotaGranted:
        return self._node.request(self._name, make(0).needed)

    def send(self, message: Any) -> None:
        assert isinstance(message, QuotaReturn)
        self._node.quotas.on_return(self._name, message.returned, 0, asked=message.asked)

    send_now = send


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def stores(node: Node, tmp_path: Path) -> Iterator[dict[str, ObjectStore]]:
    for name in ("a", "b"):
        node.stores[name] = ObjectStore(str(tmp_path), name, name, node.link(name), lambda: None)
    yield node.stores
    for store in node.stores.values():
        store.close(unlink=True)


def put(store: ObjectStore, size: int) -> Any:
    serialized = serialize(bytes(size))
    return store.write(serialized, serialized.size_bytes)


def test_room_is_drawn_in_chunks_while_there_is_much(
    node: Node, stores: dict[str, ObjectStore]
) -> None:
    for _ in range(20):
        put(stores["a"], 2 * MB)
    assert node.requests == 1


def test_the_last_of_the_room_is_used_without_waiting_for_a_chunk(
    node: Node, stores: dict[str, ObjectStore]
) -> None:
    # 36 MB are left besides the first chunk.
    for store in (stores["a"], stores["b"]):
        for _ in range(16):
            put(store, 2 * MB)
    assert node.quotas.held("a") + node.quotas.held("b") == CAPACITY
    assert node.waits == 0
    with pytest.raises(ObjectStoreFullError, match="Drop references to large objects"):
        put(stores["b"], 40 * MB)
    assert node.waits == 1


def test_what_others_have_idle_is_used(node: Node, stores: dict[str, ObjectStore]) -> None:
    location = put(stores["a"], 90 * MB)
    stores["a"].free(location)
    put(stores["b"], 80 * MB)
    assert node.quotas.held("a") == 0
    assert node.waits == 0


def test_dead_objects_that_this_process_still_looks_at_give_way(
    node: Node, stores: dict[str, ObjectStore]
) -> None:
    store = stores["a"]
    location = put(store, 60 * MB)
    view = store.view(Stored(location, "a", []))
    first = bytes(view[:64])
    store.free(location)
    put(store, 60 * MB)
    assert node.waits == 0
    assert bytes(view[:64]) == first
    assert node.quotas.held("a") <= CAPACITY
