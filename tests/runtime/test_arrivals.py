"""Values with more references than are entered at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.core.reference_effects import GiveUp, RegisterBorrower
from shoal.core.references import BATCH, Entry, ObjectTable
from shoal.lock import make_lock
from shoal.messages.values import Failed, Location, Refs, Stored
from shoal.runtime.arrivals import Arrivals

MANY = 3 * BATCH + 1


class Bench:
    """A table, and the rounds of a reactor that are played one by one."""

    def __init__(self) -> None:
        self.objects = ObjectTable("me")
        self.due: list[Callable[[], None]] = []
        self.known: list[Entry] = []
        process: Any = SimpleNamespace(
            objects=self.objects,
            lock=make_lock(),
            reactor=SimpleNamespace(
                call_later=lambda _delay_s, callback: self.due.append(callback)
            ),
            complete=self.complete,
            settle=self.objects.check,
            tick_waiters=[],
        )
        self.arrivals = Arrivals(process)

    def complete(
        self, entry: Entry, value: Any, refs: list[Refs], registered: bool | None, voucher: str = ""
    ) -> None:
        self.objects.complete(entry, value, refs, registered, voucher)
        self.known.append(entry)

    def round(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()

    def come(self, registered: bool | None, count: int = MANY) -> Entry:
        """A value with so many references inside, the last one of another owner."""
        ids = [number.to_bytes(16, "big") for number in range(count)]
        refs = [Refs("b", ids[:-1]), Refs("c", ids[-1:])]
        value = Stored(Location("segment", 0, 1), "b", refs)
        outer = self.objects.borrow((b"outer", "b"))
        outer.local = 1
        self.arrivals.complete(outer, value, refs, registered)
        return outer

    def effects(self, kind: type) -> list[Any]:
        found = [effect for effect in self.objects.outbox if type(effect) is kind]
        self.objects.outbox.clear()
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_batch_is_entered_in_a_round_and_the_value_is_known_at_last(bench: Bench) -> None:
    outer = bench.come(registered=False)
    entered = []
    while bench.due:
        bench.round()
        entered.append(len(bench.objects.entries))
    assert max(after - before for before, after in pairwise(entered)) == BATCH
    assert bench.known == [outer]
    assert len(bench.objects.entries) == MANY + 1
    asked = bench.effects(RegisterBorrower)
    assert [len(effect.object_ids) for effect in asked] == [BATCH, BATCH, BATCH, 1]
    # Its owner covers what is inside until the other owners have answered.
    assert outer.holds == len(asked)
    for effect in asked:
        bench.objects.acknowledge(effect.token)
    assert outer.holds == 0
    assert list(bench.objects.unregistered) == [outer]


def test_few_references_are_entered_at_once(bench: Bench) -> None:
    outer = bench.come(registered=False, count=BATCH)
    assert bench.known == [outer]
    assert bench.due == []


def test_what_is_made_here_is_entered_at_once_whatever_its_size(bench: Bench) -> None:
    # Only the handles of whoever made it cover what is inside, and they are about to go.
    outer = bench.come(registered=None)
    assert bench.known == [outer]
    assert bench.due == []


def test_all_of_it_is_in_before_anything_is_counted(bench: Bench) -> None:
    outer = bench.come(registered=True)
    bench.round()
    bench.arrivals.finish_arrivals()
    assert bench.known == [outer]
    assert len(bench.objects.entries) == MANY + 1
    bench.round()
    assert bench.known == [outer]
    assert outer.holds == 0


def test_whoever_drops_it_meanwhile_gives_everything_up(bench: Bench) -> None:
    outer = bench.come(registered=True)
    bench.round()
    bench.objects.drop_locals([outer])
    while bench.due:
        bench.round()
    rounds = 0
    while bench.objects.unfinished:
        bench.objects.release_some()
        rounds += 1
    assert rounds == MANY // BATCH + 1
    assert bench.objects.entries == {}
    assert len(bench.effects(GiveUp)) == MANY


def test_the_end_of_the_session_is_not_overruled(bench: Bench) -> None:
    outer = bench.come(registered=True)
    bench.round()
    bench.objects.complete(outer, Failed(b"the session is over"), [], None)
    while bench.due:
        bench.round()
    assert outer.value == Failed(b"the session is over")
    assert bench.known == []
    assert outer.holds == 0
