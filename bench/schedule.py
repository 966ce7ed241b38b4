"""Who runs what when.  Pure.

The peers of a session take turns, round by round (A B A B …), so that a machine that slows down
or speeds up in the course of a run does so for both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from bench.rows import Row


@dataclass(frozen=True, slots=True)
class Turn:
    """One process of one peer, measuring some rows once."""

    peer: str
    rows: tuple[Row, ...]
    round: int
    rounds: int


def turns(rows: Sequence[Row], peers: Collection[str], rounds: int) -> Iterator[Turn]:
    """All turns of a run, session after session in the order of the table."""
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind is not None:
            sessions.setdefault(row.session, []).append(row)
    for members in sessions.values():
        for number in range(rounds):
            due = [row for row in members if number < (row.max_rounds or rounds)]
            order = dict.fromkeys(peer for row in due for peer in row.peers if peer in peers)
            for _ in range(max((row.launches for row in due), default=0)):
                for peer in order:
                    mine = tuple(row for row in due if peer in row.peers)
                    yield Turn(peer, mine, number + 1, rounds)
