"""Numbered streams between two ends whose connection breaks, and boards of which readers want the newest."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.core.streams import Board, Incoming, Outgoing


def taken(stream: Outgoing[Any], most: int | None = None) -> list[tuple[int, Any, int]]:
    stream.check()
    return [(entry.number, entry.message, entry.missed) for entry in stream.take(most)]


def test_messages_leave_in_order_and_within_the_window() -> None:
    stream: Outgoing[str] = Outgoing(window=2, limit=10)
    for message in "abc":
        stream.push(message)
    assert taken(stream) == [(1, "a", 0), (2, "b", 0)]
    assert taken(stream) == []
    assert [entry.message for entry in stream.on_taken(1)] == ["a"]
    assert taken(stream) == [(3, "c", 0)]
    stream.on_taken(3)
    assert (stream.waiting, stream.unacknowledged) == (0, 0)


def test_what_was_not_acknowledged_goes_again_with_its_number() -> None:
    stream: Outgoing[str] = Outgoing(window=3, limit=10)
    for message in "abcd":
        stream.push(message)
    assert len(taken(stream)) == 3
    stream.on_taken(1)
    stream.rewind()
    assert taken(stream) == [(2, "b", 0), (3, "c", 0), (4, "d", 0)]
    # The acknowledgement may come before everything was handed out once more.
    stream.rewind()
    stream.on_taken(3)
    assert taken(stream) == [(4, "d", 0)]


def test_the_other_end_may_have_forgotten_what_it_acknowledged() -> None:
    stream: Outgoing[str] = Outgoing(window=9, limit=10)
    kept = [stream.push(message) for message in "abc"]
    assert len(taken(stream)) == 3
    stream.on_taken(2)
    stream.rewind([kept[0], stream.push("d")])
    assert taken(stream) == [(1, "a", 0), (3, "c", 0), (4, "d", 0)]


def test_whoever_falls_behind_gets_the_newest_and_hears_how_much_it_missed() -> None:
    def merge(old: list[int], new: list[int]) -> list[int]:
        return [*old[:-1], *new]

    stream: Outgoing[list[int]] = Outgoing(window=1, limit=2, merge=merge)
    stream.push([0], "x")
    assert taken(stream) == [(1, [0], 0)]
    stream.push([1, 10], "x")
    stream.push([2, 20], "y")
    stream.push([3, 30], "x")
    stream.push([4, 40])
    stream.push([5, 50], "y")
    assert stream.waiting == 3
    stream.on_taken(1)
    # What the superseded one was for, the newer one is for as well (here: all numbers but the last).
    assert taken(stream) == [(2, [1, 3, 30], 2)]
    stream.on_taken(2)
    assert taken(stream) == [(3, [4, 40], 0)]
    stream.on_taken(3)
    assert taken(stream) == [(4, [2, 5, 50], 0)]


def test_a_stream_that_nobody_takes_stays_flat() -> None:
    stream: Outgoing[int] = Outgoing(window=4, limit=100)
    for number in range(100_000):
        stream.push(number, number % 50)
        if number < 10:
            stream.take()
    stream.check()
    assert stream.waiting <= 150
    stream.on_taken(4)
    missed = 0
    newest: dict[int, int] = {}
    while entries := stream.take():
        for entry in entries:
            missed += entry.missed
            newest[entry.message % 50] = entry.message
        stream.on_taken(entries[-1].number)
    assert newest == {key: 99_950 + key for key in range(50)}
    assert missed > 99_000


class OverABreakingConnection(RuleBasedStateMachine):
    """Both ends, and a connection that delivers some of what it was given and then breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Outgoing[tuple[int | None, int]] = Outgoing(window=3, limit=4)
        self.incoming = Incoming()
        self.wire: deque[tuple[int, tuple[int | None, int], int]] = deque()
        self.acks: deque[int] = deque()
        self.pushed: list[tuple[int | None, int]] = []
        self.heard: list[tuple[int | None, int]] = []
        self.missed = 0

    @rule(key=st.none() | st.integers(0, 3))
    def push(self, key: int | None) -> None:
        message = (key, len(self.pushed))
        self.pushed.append(message)
        self.stream.push(message, key)

    @rule(most=st.none() | st.integers(0, 4))
    def send(self, most: int | None = None) -> None:
        before = len(self.wire)
        self.wire.extend(taken(self.stream, most))
        assert most is None or len(self.wire) - before <= most

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self) -> None:
        number, message, missed = self.wire.popleft()
        if self.incoming.is_new(number):
            self.heard.append(message)
            self.missed += missed
        self.acks.append(self.incoming.last)

    @precondition(lambda self: self.acks)
    @rule()
    def acknowledge(self) -> None:
        self.stream.on_taken(self.acks.popleft())

    @rule()
    def break_off(self) -> None:
        self.wire.clear()
        self.acks.clear()
        # As the first message of a new connection says.
        self.stream.on_taken(self.incoming.last)
        self.stream.rewind()

    @invariant()
    def in_order_and_once(self) -> None:
        self.stream.check()
        numbers = [number for _, number in self.heard]
        assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        self.break_off()
        for _ in range(2 * len(self.pushed) + 1):
            self.send()
            while self.wire:
                self.deliver()
            while self.acks:
                self.acknowledge()
        assert (self.stream.waiting, self.stream.unacknowledged) == (0, 0)
        keyless = [message for message in self.pushed if message[0] is None]
        assert [message for message in self.heard if message[0] is None] == keyless
        assert len(self.heard) + self.missed == len(self.pushed)
        # Of each key the last one has arrived.
        assert dict(self.heard) == dict(self.pushed)


TestOverABreakingConnection = OverABreakingConnection.TestCase


@given(
    st.lists(st.tuples(st.sampled_from(["put", "discard", "read"]), st.integers(0, 4)), max_size=60)
)
def test_readers_of_a_board_get_each_row_once_and_as_it_is(steps: list[tuple[str, int]]) -> None:
    board: Board[int] = Board()
    truth: dict[bytes, int] = {}
    changed: set[bytes] = set()
    version = 0
    for value, (what, number) in enumerate(steps):
        key = bytes([number])
        if what == "put":
            board.put(key, value)
            truth[key] = value
            changed.add(key)
        elif what == "discard":
            board.discard(key)
            truth.pop(key, None)
            changed.discard(key)
        else:
            rows = board.since(version)
            version = board.version
            assert sorted(rows) == sorted(truth[key] for key in changed)
            changed.clear()
    assert sorted(board.rows()) == sorted(board.since(0)) == sorted(truth.values())
    assert len(board) == len(truth)
