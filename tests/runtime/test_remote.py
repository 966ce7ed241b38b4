"""Objects of other nodes in one process, with a daemon that answers when the test says so."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import pytest

from shoal.errors import NodeDiedError, ObjectLostError, ObjectStoreFullError
from shoal.lock import make_lock
from shoal.messages.transfer import Freed, Pull, PullDone, Pulled, Why
from shoal.messages.values import Location, Stored
from shoal.runtime.remote import RemoteObjects, Wanted
from shoal.store.mapping import view_of

HERE = "10.0.0.1:1"
COPY = Location("daemon-0", 0, 3, 9)


def stored(number: int = 0, place: str = "10.0.0.2:1") -> Stored:
    return Stored(Location("maker-0", 64 * number, 3, number + 1), f"{place}/w-00000001")


class Reactor:
    """No threads, no sockets."""

    def __init__(self) -> None:
        self.lock = make_lock()

    def flush(self) -> None:
        pass

    def flush_locked(self) -> None:
        pass

    def wait(self, wish: Any) -> bool:
        raise AssertionError("nobody should have to wait")


class Node:
    """What is said to the daemon; `answer`, if it is set, is what each `Pull` is answered by at once."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.lost = ""
        self.when_lost: list[Any] = []
        self.said: list[Any] = []
        self.answer: Any = None
        self.objects = RemoteObjects(self, HERE, self.view)  # type: ignore[arg-type]  # all that is used of a link
        self.viewed: list[Location] = []

    def send_locked(self, message: Any) -> None:
        self.said.append(message)

    def send(self, message: Any) -> None:
        self.said.append(message)

    def say(self, message: Pulled) -> None:
        self.objects.node_handlers[Pulled](message)

    def view(self, location: Location) -> memoryview:
        self.viewed.append(location)
        return view_of((ctypes.c_char * 3)(*b"abc"), 3).toreadonly()


@pytest.fixture
def node() -> Node:
    return Node()


def test_only_other_places_are_remote(node: Node) -> None:
    assert node.objects.is_remote(stored())
    assert not node.objects.is_remote(stored(place=HERE))
    assert not node.objects.is_remote(b"inline")


def test_a_copy_is_mapped_and_then_the_daemon_may_let_go(node: Node) -> None:
    wish = node.objects.begin(stored(), Why.GET)
    assert node.said == [Pull(1, stored().location, stored().creator, Why.GET)]
    node.say(Pulled(1, COPY))
    view = node.objects.take(wish, "x")
    assert view == b"abc"
    assert node.said[1:] == [PullDone(1)]
    # While it is looked at it is not asked for again; afterwards it is.
    again = node.objects.begin(stored(), Why.GET)
    assert node.objects.take(again, "x") == b"abc"
    node.objects.end(again)
    assert len(node.said) == 2
    del view, again, wish
    node.objects.begin(stored(), Why.GET)
    assert node.said[2:] == [Pull(3, stored().location, stored().creator, Why.GET)]


def test_what_is_given_up_is_said_once_whether_it_has_come_or_not(node: Node) -> None:
    early, late = (node.objects.begin(stored(n), Why.GET) for n in range(2))
    node.said.clear()
    node.say(Pulled(late.req, COPY))
    for wish in (early, late, early, late):
        node.objects.end(wish)
    assert node.said == [PullDone(early.req), PullDone(late.req)]
    # It crosses the word that nobody wants it.
    node.say(Pulled(early.req, COPY))
    assert node.viewed == []


def test_errors_say_which_object_and_why(node: Node) -> None:
    wish = node.objects.begin(stored(), Why.GET)
    node.say(Pulled(1, None, "ObjectLostError: its node is gone", "was killed"))
    with pytest.raises(
        ObjectLostError, match=r"argument 'x' of 3 bytes .* from 10.0.0.2:1: its node is gone"
    ) as caught:
        node.objects.take(wish, "argument 'x'", "abcd")
    assert caught.value.object_ref_hex == "abcd"
    assert isinstance(caught.value.__cause__, NodeDiedError)
    node.objects.end(wish)
    wish = node.objects.begin(stored(), Why.GET)
    node.say(Pulled(2, None, "ObjectStoreFullError: no room"))
    with pytest.raises(ObjectStoreFullError, match="no room"):
        node.objects.take(wish, "x")
    assert not any(isinstance(message, PullDone) for message in node.said)


def test_when_one_of_many_fails_the_others_are_given_up(node: Node) -> None:
    def answer(wish: Any) -> bool:
        node.say(Pulled(wish.req, *((COPY,) if wish.req == 1 else (None, "ObjectLostError: gone"))))
        return True

    with pytest.raises(ObjectLostError):
        node.objects.get([Wanted(stored(n), f"object {n}") for n in range(3)], Why.GET, answer)
    assert [m.req for m in node.said if isinstance(m, PullDone)] == [1, 3]
    with pytest.raises(TimeoutError, match="object 0"):
        node.objects.get([Wanted(stored(0), "object 0")], Why.GET, lambda _wish: False)
    assert node.objects._wishes == {}


def test_wait_asks_once_and_knows_when_it_is_here_or_cannot_be(node: Node) -> None:
    for _ in range(3):
        assert not node.objects.is_here(stored(0))
        assert not node.objects.is_here(stored(1))
    assert [m.why for m in node.said] == [Why.WAIT, Why.WAIT]
    node.say(Pulled(1, COPY))
    node.say(Pulled(2, None, "ObjectLostError: gone"))
    assert node.objects.is_here(stored(0))
    assert node.objects.is_here(stored(1))
    assert node.said[2:] == [PullDone(1)]


def test_without_a_daemon_nobody_waits(node: Node) -> None:
    before = node.objects.begin(stored(0), Why.GET)
    node.lost = "the session is over"
    for listener in node.when_lost:
        listener(node.lost)
    after = node.objects.begin(stored(1), Why.GET)
    for wish in (before, after):
        assert wish.done
        with pytest.raises(NodeDiedError, match="the session is over"):
            node.objects.take(wish, "x")


def test_what_was_freed_is_told_in_one_message(node: Node) -> None:
    for n in range(3):
        node.objects.freed(stored(n).location)
    node.objects.tell_freed()
    node.objects.tell_freed()
    assert node.said == [Freed([stored(n).location for n in range(3)])]


def test_more_objects_than_are_remembered_all_come_and_are_asked_for_once(node: Node) -> None:
    many = 12_000
    come: list[int] = []
    with node.reactor.lock:
        for number in range(many):
            node.objects.when_here(stored(number), partial(come.append, number))
            # Asked for again meanwhile, by a `wait` for few.
            assert not node.objects.is_here(stored(number))
    assert sum(isinstance(message, Pull) for message in node.said) == many
    assert come == []
    with node.reactor.lock:
        for req in range(1, many + 1):
            node.say(Pulled(req, COPY, "", ""))
    assert come == list(range(many))
    assert node.objects.is_here(stored(many - 1))
    assert len(node.objects._brought) < many


def test_whoever_gets_many_is_told_how_many_are_missing(node: Node) -> None:
    wanted = [Wanted(stored(number), f"object {number}", "") for number in range(5)]

    def wait(wish: Any) -> bool:
        if wish.req <= 2:
            node.say(Pulled(wish.req, COPY, "", ""))
        return bool(wish.done)

    with pytest.raises(TimeoutError) as caught:
        node.objects.get(wanted, Why.GET, wait)
    assert caught.value.args == ("object 2", 3)
