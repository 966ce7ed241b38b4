"""A hundred gigabytes of objects through a store of one, from the driver and from tasks at once.

The whole of it takes `--stress-seconds=60` or more (and is bounded by its bytes, not by its time); with less, it ends when half of
these seconds are over, which is 10 s by default.

Every object is a piece of one long run of numbers, so that it says itself which one it is, and making it costs nothing but the copy
into the store. Views outlive their objects: whether their memory is used for another one too early shows in their numbers.
"""

from __future__ import annotations

import functools
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import shoal
from shoal.runtime import current_process
from tests.api.gates import wait_until
from tests.stress.test_mixed import known_objects, living_objects

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]

TOTAL: Final = 100 * 10**9
CAPACITY: Final = 10**9
WHOLE_RUN_S: Final = 60.0
SEED: Final = int(os.environ.get("SHOAL_STRESS_SEED", "20"))
PATIENCE_S: Final = 60.0

SMALLEST: Final = 10**6
LARGEST: Final = 300 * 10**6
# Memory is warm for sizes that come again, as those of a program's arrays do; the others make the store give memory back and take it
# anew.
USUAL: Final = (SMALLEST, 8 * 10**6, 60 * 10**6)
# What lives or is looked at is at most this: 850 MB and a sixteenth, which segments may be larger than their objects. So there is
# always room, and nobody waits for anything but idle memory of others.
HELD_BY_DRIVER: Final = 300 * 10**6
HELD_BY_TASK: Final = 250 * 10**6
BYTES_OF_A_TASK: Final = 2 * 10**9

WORD: Final = 8
RUN: Final = 2 * LARGEST // WORD // 3 * 2

Array = np.ndarray[Any, np.dtype[np.int64]]


@functools.cache
def numbers() -> Array:
    """The long run of numbers, once in each process."""
    return np.arange(RUN, dtype=np.int64)


class Churn:
    """Makes random objects and looks at them, keeping views of at most `room` bytes, the objects of the latest included."""

    def __init__(self, seed: int, room: int, largest: int = LARGEST) -> None:
        self.rng = random.Random(seed)
        self.moved = 0
        self._room = room
        self._largest = largest
        self._views: list[tuple[Array, int, int]] = []
        self._held = 0

    def draw(self) -> tuple[int, int]:
        """Where an object begins in the run, and how long it is: a usual length or any, as many small ones as large."""
        if self.rng.random() < 0.5:
            size = self.rng.choice((*USUAL, self._largest))
        else:
            size = int(SMALLEST * (self._largest / SMALLEST) ** self.rng.random())
        length = size // WORD
        return self.rng.randrange(RUN - length), length

    def hold(self, view: Array, start: int, length: int) -> None:
        """Look at an object, and keep the view while there is room for it."""
        self.look(view, start, length)
        self.moved += view.nbytes
        self._views.append((view, start, length))
        self._held += view.nbytes
        while self._held > self._room:
            self._let_go(self.rng.randrange(len(self._views)))

    def look(self, view: Array, start: int, length: int) -> None:
        """The first word, the last, and some between are those of the object."""
        assert view.shape == (length,)
        places = [0, length - 1, *(self.rng.randrange(length) for _ in range(30))]
        found = [int(view[place]) for place in places]
        assert found == [start + place for place in places], f"{start} of {length} is damaged"

    def _let_go(self, number: int) -> None:
        view, start, length = self._views.pop(number)
        self._held -= view.nbytes
        self.look(view, start, length)

    def end(self) -> None:
        """Look at all that is held once more, and let go of it."""
        while self._views:
            self._let_go(-1)


@shoal.remote
def put_and_drop(seed: int, total: int) -> int:
    """Objects that this worker owns. The one that is made and those that are held have HELD_BY_TASK bytes together."""
    churn = Churn(seed, HELD_BY_TASK // 2, HELD_BY_TASK // 2)
    while churn.moved < total:
        start, length = churn.draw()
        churn.hold(shoal.get(shoal.put(numbers()[start : start + length])), start, length)
    churn.end()
    return churn.moved


@shoal.remote
def make(start: int, length: int) -> Array:
    """An object of the driver's that is in this worker's memory."""
    return numbers()[start : start + length]


@shoal.remote
def look(view: Array, seed: int, start: int, length: int) -> None:
    """An object of the driver's, in whosesoever memory it is."""
    Churn(seed, 0).look(view, start, length)


@pytest.mark.cluster(num_cpus=2, object_store_memory=CAPACITY)
def test_a_hundred_gigabytes_pass_through_a_store_of_one(
    cluster: Any, stress_seconds: float
) -> None:
    """None is damaged, the files never exceed the capacity, and in the end none is left."""
    began = time.monotonic()
    until = began + (stress_seconds / 2 if stress_seconds < WHOLE_RUN_S else float("inf"))
    folder = Path(cluster["object_store_address"])
    with watched(folder) as peak:
        moved, count = churn_until(until)
    took_s = time.monotonic() - began
    print(
        f"{moved / 1e9:.1f} GB in {took_s:.1f} s ({moved / took_s / 1e9:.1f} GB/s), {count} objects of the driver's, "
        f"at most {max(peak) / 1e6:.0f} MB at a time in {len(peak)} samples"
    )
    assert moved >= TOTAL or time.monotonic() >= until
    assert moved > 3 * CAPACITY, "memory was used again"
    assert CAPACITY / 2 < max(peak) <= CAPACITY
    wait_until(lambda: known_objects() == [], "the driver knows of no object any more")
    wait_until(lambda: not living_objects(), "no worker has an object any more")
    wait_until(nothing_is_live, "the driver's memory is all idle")
    shoal.shutdown()
    assert not folder.exists()


def churn_until(until: float) -> tuple[int, int]:
    """Bytes of all objects, and the number of the driver's."""
    churn = Churn(SEED, HELD_BY_DRIVER)
    others, count = 0, 0
    task = put_and_drop.remote(SEED, BYTES_OF_A_TASK)
    while churn.moved + others < TOTAL and time.monotonic() < until:
        count += 1
        start, length = churn.draw()
        if churn.rng.random() < 0.7:
            ref = shoal.put(numbers()[start : start + length])
        else:
            ref = make.remote(start, length)
        if churn.rng.random() < 0.3:
            shoal.get(look.remote(ref, count, start, length), timeout=PATIENCE_S)
        view = shoal.get(ref, timeout=PATIENCE_S)
        del ref
        churn.hold(view, start, length)
        del view
        if shoal.wait([task], timeout=0)[0]:
            others += shoal.get(task)
            task = put_and_drop.remote(SEED + count, BYTES_OF_A_TASK)
    churn.end()
    return churn.moved + others + shoal.get(task, timeout=PATIENCE_S), count


def nothing_is_live() -> bool:
    store = current_process.require().store
    # Also those in quarantine are looked at again.
    store.give_back(CAPACITY)
    stats = store.arena.stats()
    return not stats.live_blocks and not stats.quarantined_blocks


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """How many bytes the files in a folder had in the meantime, again and again."""
    samples: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.003):
            # A file that was there both times was there in between too, since no name is used again. Adding up one
            # listing could count a file that is gone together with the one that took its place.
            before, after = sizes(folder), sizes(folder)
            samples.append(sum(min(size, after.get(name, 0)) for name, size in before.items()))

    thread = threading.Thread(target=sample, name="samples of the store")
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def sizes(folder: Path) -> dict[str, int]:
    """The bytes that each file in a folder takes up."""
    found = {}
    for entry in os.scandir(folder):
        try:
            found[entry.name] = entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return found
