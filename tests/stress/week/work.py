"""Tasks and actors of the load, and large objects that tell whether they are whole.

A large object is a list of slices of one run of numbers, which each process has once: making it costs nothing but the copy into the
store, and no memory of the process that would be mistaken for growth. Where the slices begin follows from the seed of the object, so sums
of them are known.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

import shoal

Pieces = list[np.ndarray[Any, np.dtype[np.int64]]]
Spec = tuple[int, int]
"""Seed and length, in words of 8 bytes, of an object."""

WORD: Final = 8
_PIECE: Final = (4 << 20) // WORD
_STARTS: Final = 1 << 16


@functools.cache
def numbers() -> np.ndarray[Any, np.dtype[np.int64]]:
    """The run of numbers, once in each process."""
    return np.arange(_PIECE + _STARTS, dtype=np.int64)


def slices(spec: Spec) -> Iterator[tuple[int, int]]:
    """Where the pieces of an object begin, and how long they are."""
    seed, length = spec
    while length:
        count = min(length, _PIECE)
        yield seed % _STARTS, count
        length -= count
        seed = seed * 31 + 7


def pieces(spec: Spec) -> Pieces:
    """The object."""
    return [numbers()[start : start + count] for start, count in slices(spec)]


def look(found: Pieces, spec: Spec) -> None:
    """Raise unless every piece is there, with the sum that it must have."""
    expected = list(slices(spec))
    assert len(found) == len(expected), f"{len(found)} pieces instead of {len(expected)}"
    for piece, (start, count) in zip(found, expected, strict=True):
        assert piece.shape == (count,), f"{piece.shape} instead of ({count},)"
        total = count * start + count * (count - 1) // 2
        assert int(piece.sum()) == total, f"object {spec} is damaged: {int(piece.sum())}, {total}"
        assert (int(piece[0]), int(piece[-1])) == (start, start + count - 1)


def look_at_all(refs: Sequence[Any], specs: Sequence[Spec]) -> None:
    """The same for what references lead to."""
    for ref, spec in zip(refs, specs, strict=True):
        look(shoal.get(ref), spec)


# --- small tasks -------------------------------------------------------------------------------------------------------


@shoal.remote
def echo(value: Any) -> Any:
    """A task that does nothing."""
    return value


@shoal.remote
def add(*numbers: int) -> int:
    """One that waits for others."""
    return sum(numbers)


@shoal.remote
def leaves(depth: int, width: int) -> int:
    """A tree of tasks, each owned by the one above."""
    if not depth:
        return 1
    return sum(shoal.get([leaves.remote(depth - 1, width) for _ in range(width)]))


def tree_size(depth: int, width: int) -> int:
    """How many tasks `leaves` is."""
    return sum(width**level for level in range(depth + 1))


@shoal.remote
def fail(code: int) -> None:
    """One that raises."""
    raise ValueError(f"code {code}")


@shoal.remote
def add_boxed(refs: list[Any]) -> int:
    """References inside a list: it borrows them."""
    return sum(shoal.get(refs))


@shoal.remote
def count_up(count: int) -> Iterator[int]:
    """A stream."""
    yield from range(count)


# --- large objects -----------------------------------------------------------------------------------------------------


@shoal.remote
def make(spec: Spec) -> Pieces:
    """An object of whoever submits this, in the memory of a worker."""
    return pieces(spec)


@shoal.remote
def make_all(specs: Sequence[Spec]) -> Any:
    """Several, with `num_returns`."""
    return [pieces(spec) for spec in specs]


@shoal.remote
def stream(specs: Sequence[Spec]) -> Iterator[Pieces]:
    """Several, one after the other."""
    for spec in specs:
        yield pieces(spec)


@shoal.remote
def lend(specs: Sequence[Spec]) -> list[Any]:
    """Objects that a worker owns, and its client borrows."""
    return [shoal.put(pieces(spec)) for spec in specs]


@shoal.remote
def check(found: Pieces, spec: Spec) -> None:
    """An object as an argument."""
    look(found, spec)


@shoal.remote
def check_boxed(refs: list[Any], specs: Sequence[Spec]) -> None:
    """References to objects in an argument."""
    look_at_all(refs, specs)


@shoal.remote
def hand_on(box: list[Any]) -> list[Any]:
    """What it was given, in an object of its own inside its result."""
    return [shoal.put(box)]


@shoal.remote(max_retries=0)
def crash(refs: list[Any]) -> None:
    """A borrower that dies."""
    os.kill(os.getpid(), signal.SIGKILL)


# --- actors ------------------------------------------------------------------------------------------------------------


class _Shelf:
    """An actor that has references in its state, by number."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[list[Any], Sequence[Spec]]] = {}

    def pid(self) -> int:
        return os.getpid()

    def keep(self, key: int, refs: list[Any], specs: Sequence[Spec]) -> None:
        self._kept[key] = refs, specs

    def drop(self, key: int, look: bool) -> None:
        refs, specs = self._kept.pop(key)
        if look:
            look_at_all(refs, specs)

    def echo(self, value: Any) -> Any:
        return value


@shoal.remote(num_cpus=0)
class Keeper(_Shelf):
    """Lives long, and owns."""

    def make(self, specs: Sequence[Spec]) -> list[Any]:
        """Objects of this actor, for others."""
        return [shoal.put(pieces(spec)) for spec in specs]


@shoal.remote(num_cpus=0)
class Borrower(_Shelf):
    """Is killed."""

    def pass_on(self, other: Any, key: int, refs: list[Any], specs: Sequence[Spec]) -> None:
        """Have another borrower keep what this one was lent, and keep it too."""
        self.keep(key, refs, specs)
        shoal.get(other.keep.remote(key, refs, specs))
