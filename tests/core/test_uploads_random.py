"""Uploads under random events, against a dumb model of what exists: whoever was sent an object hears of its end, and nothing is kept when
there is nothing to keep, in whatever order asks, ends of uploads and deaths of objects, makers and nodes arrive."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.pull_records import Key, Stage
from shoal.core.uploads import Serve, Uploads
from shoal.messages.transfer import Ask, Missing
from shoal.messages.values import Location

MAKERS = ("maker", "makers", "other")
PEERS = ("b", "c", "d", "e")
OBJECTS = tuple(
    Location(f"{maker}-{number}", 0, 100, number + 1) for maker in MAKERS for number in range(2)
)
COPY = Key("elsewhere", OBJECTS[0])

objects = st.sampled_from(OBJECTS)
events = st.one_of(
    # Twice, since without asks nothing happens.
    st.tuples(st.just("ask"), st.sampled_from(PEERS), objects),
    st.tuples(st.just("ask"), st.sampled_from(PEERS), objects),
    st.tuples(st.just("ask for the copy"), st.sampled_from(PEERS)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("free"), objects),
    st.tuples(st.just("lose"), objects),
    st.tuples(st.just("sweep"), st.sampled_from(MAKERS)),
    st.tuples(st.just("node dies"), st.sampled_from(PEERS)),
)


class World:
    """The machine, its shell, and what is true."""

    def __init__(self, width: int) -> None:
        self.uploads = Uploads("origin", width, stage=lambda _key: Stage.WHOLE)
        self.number = 0
        self.active: dict[int, Key] = {}
        # What can be found, and what was said to be dead although the memory is there, for others.
        self.there = set(OBJECTS)
        self.freed: set[Location] = set()
        # Who has a copy and has not heard that it is dead.
        self.copies: set[tuple[str, Location]] = set()

    def do(self, event: tuple[object, ...]) -> None:
        match event:
            case ("ask", str(peer), Location() as at):
                self.ask(peer, Key("origin", at))
            case ("ask for the copy", str(peer)):
                self.ask(peer, COPY)
            case ("end", int(index)) if self.active:
                self.end(list(self.active)[index % len(self.active)])
            case ("free", Location() as at):
                self.free(at)
            case ("lose", Location() as at):
                # Unlinked by the keeper of the store, who tells nobody: its owner has ended, and nobody here uses it.
                self.there.discard(at)
            case ("sweep", str(maker)):
                self.sweep(maker)
            case ("node dies", str(peer)):
                self.uploads.on_place_gone(peer)
                self.copies = {copy for copy in self.copies if copy[0] != peer}
        self.deliver()
        self.uploads.check()

    def ask(self, peer: str, key: Key) -> None:
        self.number += 1
        verdict = self.uploads.on_ask(self.number, Ask(*key, 0, peer))
        if not isinstance(verdict, Serve):
            return
        own = key.place == "origin"
        assert not own or key.location not in self.freed & self.there
        self.active[self.number] = key
        if own and key.location not in self.there:
            self.uploads.on_absent(key)
            self.end(self.number)
        elif own:
            self.copies.add((peer, key.location))

    def end(self, number: int) -> None:
        self.uploads.on_ended(self.active.pop(number), number)

    def free(self, at: Location) -> None:
        self.freed.add(at)
        self.uploads.on_freed([at])

    def sweep(self, maker: str) -> None:
        self.there -= {at for at in OBJECTS if at.segment.startswith(f"{maker}-")}
        self.uploads.on_creator_gone(maker)

    def deliver(self) -> None:
        notices, self.uploads.outbox = self.uploads.outbox, []
        for notice in notices:
            for at in notice.locations:
                assert at in self.freed or at not in self.there
                self.copies.discard((notice.place, at))


@settings(max_examples=500)
@given(st.integers(1, 2), st.lists(events, max_size=40))
def test_nothing_is_kept_when_all_is_quiet(width: int, said: list[tuple[object, ...]]) -> None:
    world = World(width)
    for event in said:
        world.do(event)
    for maker in MAKERS:
        world.sweep(maker)
    # Whoever has not heard of it asks once more.
    for at in OBJECTS:
        world.do(("ask", "b", at))
    for number in list(world.active):
        world.end(number)
    for at in OBJECTS:
        world.do(("ask", "c", at))
    world.deliver()
    assert world.copies == set()
    assert world.uploads.is_quiet()
    assert not world.uploads._dead


def test_who_asks_for_what_a_swept_process_made_is_not_remembered() -> None:
    uploads = Uploads("origin", 1, stage=lambda _key: Stage.NONE)
    key = Key("origin", OBJECTS[0])
    assert isinstance(uploads.on_ask(1, Ask(*key, 0, "b")), Serve)
    uploads.on_creator_gone("maker")
    uploads.outbox.clear()
    # While an upload goes on, and afterwards.
    assert uploads.on_ask(2, Ask(*key, 0, "c")) == Missing("the object was freed")
    uploads.on_ended(key, 1)
    assert isinstance(uploads.on_ask(3, Ask(*key, 0, "c")), Serve)
    uploads.on_absent(key)
    uploads.on_ended(key, 3)
    uploads.outbox.clear()
    assert uploads.is_quiet()
