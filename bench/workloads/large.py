"""Very many objects at a time, and very large ones: what shows whether something grows with the square, or with every byte.

Two nodes; the driver is at the first.  Each reading moves some thousands of objects, a million references, or gigabytes once, and its
figure is the time for that; what else is of interest (other steps, memory, how long a process answered nobody) stands beside it.
numpy is imported where it is used.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.clusters import MB, Nodes, on_node
from bench.measure import Census, Plan, Samples
from bench.peers import Core, Stopwatch

OBJECTS = 10_000
OBJECT_BYTES = 200_000
TIGHT = Nodes(2, object_store_memory=1_000 * MB)
"""Has room for half of the objects."""

HELD = 100_000
REFS = 1_000_000
ROOMY = Nodes(2, object_store_memory=2_000 * MB)

HUGE_BYTES = 5_000 * MB
HUGE_STORE = Nodes(2, object_store_memory=2_000 * MB)

_SETTLE_S = 3.0
_PING_EVERY_S = 0.01
_PARTS = 50


# --- ten thousand objects ------------------------------------------------------------------------------------------------


def _large(ray: Core, count: int) -> list[Any]:
    import numpy as np

    array = np.zeros(OBJECT_BYTES // 8, dtype=np.int64)
    refs = []
    for number in range(count):
        array[0] = number
        refs.append(ray.put(array))
    return refs


def _sum_of_firsts(arrays: Any) -> int:
    return sum(int(array[0]) for array in arrays)


def _expect(found: int, count: int) -> None:
    if found != count * (count - 1) // 2:
        raise AssertionError("something was lost, or is another")


def get_many(ray: Core, _census: Census, _plan: Plan) -> Samples:
    """``get`` of 10,000 objects of 200 KB that the driver has put, half of which have had to go to disk."""
    watch = Stopwatch()
    refs = _large(ray, OBJECTS)
    put_s = watch.lap()
    with pings(ray) as worst:
        watch.lap()
        _expect(_sum_of_firsts(ray.get(refs)), OBJECTS)
        got_s = watch.lap()
    return Samples([got_s], {"put (s)": put_s, "longest silence (s)": worst()})


def pass_many(ray: Core, _census: Census, _plan: Plan) -> Samples:
    """A task that takes 10,000 such objects as its arguments, then one that takes a list of their refs."""

    @ray.remote
    def take(*arrays: Any) -> int:
        return sum(int(array[0]) for array in arrays)

    @ray.remote
    def take_list(refs: list[Any]) -> int:
        return sum(int(array[0]) for array in ray.get(refs))

    refs = _large(ray, OBJECTS)
    here = on_node(0)
    ray.get(take.options(**here).remote(refs[0]))
    watch = Stopwatch()
    _expect(ray.get(take.options(**here).remote(*refs)), OBJECTS)
    arguments_s = watch.lap()
    _expect(ray.get(take_list.options(**here).remote(refs)), OBJECTS)
    return Samples([arguments_s], {"as one list (s)": watch.lap()})


def move_many(ray: Core, _census: Census, _plan: Plan) -> Samples:
    """``get`` of 10,000 objects of 200 KB that a task has put at another node."""
    there = on_node(1)

    @ray.remote
    def make(count: int) -> list[Any]:
        import numpy as np

        array = np.zeros(OBJECT_BYTES // 8, dtype=np.int64)
        refs = []
        for number in range(count):
            array[0] = number
            refs.append(ray.put(array))
        return refs

    @ray.remote
    def make_small(count: int) -> list[Any]:
        return [ray.put([number]) for number in range(count)]

    refs = ray.get(make_small.options(**there).remote(OBJECTS))
    watch = Stopwatch()
    _expect(_sum_of_firsts(ray.get(refs)), OBJECTS)
    small_s = watch.lap()
    refs = ray.get(make.options(**there).remote(OBJECTS))
    with pings(ray) as worst:
        watch.lap()
        _expect(_sum_of_firsts(ray.get(refs)), OBJECTS)
        large_s = watch.lap()
    return Samples([large_s], {"small ones (s)": small_s, "longest silence (s)": worst()})


# --- a million references ------------------------------------------------------------------------------------------------


class Holder:
    """Borrows references, and says what that takes."""

    def hold(self, core: Any, box: list[Any]) -> float:
        watch = Stopwatch()
        self.refs = core.get(box[0])
        return watch.lap()

    def ping(self) -> int:
        return 1

    def memory(self) -> int:
        return unique_bytes()

    def drop(self) -> None:
        self.refs = None


def _holder(ray: Core) -> type:
    # The module under test cannot be an argument: it is imported by name, where the actor is.
    name = ray.__name__

    class Named(Holder):
        def hold(self, box: list[Any]) -> float:  # type: ignore[override]  # see above
            import importlib

            return super().hold(importlib.import_module(name), box)

    return Named


def box_of_refs(count: int) -> Callable[[Core, Census, Plan], Samples]:
    """An object that holds so many references: put by the driver, read by another process, by one at another node, dropped."""

    def read(ray: Core, _census: Census, _plan: Plan) -> Samples:
        holder = ray.remote(_holder(ray))
        near, far = (
            holder.options(max_concurrency=2, **on_node(index)).remote() for index in range(2)
        )
        ray.get([near.ping.remote(), far.ping.remote()])
        beside: dict[str, float] = {}
        own, theirs = unique_bytes(), ray.get(near.memory.remote())
        watch = Stopwatch()
        refs = [ray.put(number) for number in range(count)]
        beside["puts of the small objects (s)"] = watch.lap()
        with pings(ray) as worst, pings(ray, near) as worst_there:
            watch.lap()
            box = ray.put(refs)
            put_s = watch.lap()
            ray.get(near.hold.remote([box]))
            near_s = watch.lap()
            ray.get(far.hold.remote([box]))
            beside["read at another node (s)"] = watch.lap()
            beside["owner, bytes per ref"] = (unique_bytes() - own) / count
            beside["borrower, bytes per ref"] = (ray.get(near.memory.remote()) - theirs) / count
            watch.lap()
            del refs, box
            ray.get([near.drop.remote(), far.drop.remote()])
            ray.get(near.ping.remote())
            beside["dropped (s)"] = watch.lap()
            time.sleep(_SETTLE_S)
        beside["owner, bytes per ref, afterwards"] = (unique_bytes() - own) / count
        beside["borrower, bytes per ref, afterwards"] = (
            ray.get(near.memory.remote()) - theirs
        ) / count
        beside["put (s)"] = put_s
        beside["longest silence of the driver (s)"] = worst()
        beside["longest silence of the borrower (s)"] = worst_there()
        return Samples([put_s + near_s], beside)

    return read


def drop_at_random(ray: Core, _census: Census, _plan: Plan) -> Samples:
    """100,000 small objects and as many results of tasks are held, and dropped in random order."""

    @ray.remote
    def number(n: int) -> int:
        return n

    ray.get([number.remote(n) for n in range(100)])
    rng = random.Random(1)
    before = unique_bytes()
    watch = Stopwatch()
    refs = [ray.put(n) for n in range(HELD)]
    put_s = watch.lap()
    rng.shuffle(refs)
    with pings(ray) as worst:
        watch.lap()
        while refs:
            refs.pop()
        # What is counted later is counted now.
        ray.get(ray.put(0))
        drop_s = watch.lap()
        refs = [number.remote(n) for n in range(HELD)]
        ray.get(refs)
        tasks_s = watch.lap()
        rng.shuffle(refs)
        watch.lap()
        while refs:
            refs.pop()
        ray.get(ray.put(0))
        drop_results_s = watch.lap()
        time.sleep(_SETTLE_S)
    return Samples(
        [drop_s],
        {
            "puts (s)": put_s,
            "tasks (s)": tasks_s,
            "results dropped (s)": drop_results_s,
            "longest silence (s)": worst(),
            "driver's memory more than before (MB)": (unique_bytes() - before) / MB,
        },
    )


# --- five gigabytes ------------------------------------------------------------------------------------------------------


def put_huge(ray: Core, _census: Census, _plan: Plan) -> Samples:
    """``put`` of 5 GB where stores have 2 GB, read in place by a task at this node, and then by one at another."""

    @ray.remote
    def add_up(array: Any) -> tuple[int, float]:
        watch = Stopwatch()
        part = len(array) // _PARTS
        total = sum(int(array[k * part : (k + 1) * part].sum()) for k in range(_PARTS))
        return total % 2**64, watch.lap()

    @ray.remote
    def nothing() -> None:
        return None

    numbers = HUGE_BYTES // 8
    expected = numbers * (numbers - 1) // 2 % 2**64
    ray.get([nothing.options(**on_node(index)).remote() for index in range(2)])
    with _huge_array(numbers) as array, anonymous_peak() as peak:
        before = anonymous_bytes()
        watch = Stopwatch()
        ref = ray.put(array)
        put_s = watch.lap()
        here, _ = ray.get(add_up.options(**on_node(0)).remote(ref))
        here_s = watch.lap()
        there, reading_s = ray.get(add_up.options(**on_node(1)).remote(ref))
        there_s = watch.lap()
        del ref
    if (here, there) != (expected, expected):
        raise AssertionError("the sum is wrong: something was lost or damaged")
    return Samples(
        [put_s],
        {
            "task at this node (s)": here_s,
            "task at another node (s)": there_s,
            "of that, adding up (s)": reading_s,
            "memory of all processes, files aside, more than before: peak (MB)": (peak() - before)
            / MB,
        },
    )


@contextmanager
def _huge_array(numbers: int) -> Iterator[Any]:
    """Numbers in a row, in a file: its pages are the system's, and no memory of the driver."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="bench-huge-") as folder:
        path = Path(folder) / "array"
        part = numbers // _PARTS
        with open(path, "wb") as file:
            for k in range(_PARTS):
                np.arange(k * part, (k + 1) * part, dtype=np.uint64).tofile(file)
        yield np.asarray(np.memmap(path, dtype=np.uint64, mode="r"))


# --- instruments ---------------------------------------------------------------------------------------------------------


@contextmanager
def pings(ray: Core, actor: Any = None) -> Iterator[Callable[[], float]]:
    """Calls an actor again and again, from a thread, and says how long the slowest answer took.

    Without an actor it makes one that does nothing else: what is slow then is this process.
    """

    class Echo:
        def ping(self) -> int:
            return 1

    if actor is None:
        actor = ray.remote(Echo).options(num_cpus=0).remote()
    ray.get(actor.ping.remote())
    worst = 0.0
    over = threading.Event()

    def ask() -> None:
        nonlocal worst
        while not over.wait(_PING_EVERY_S):
            watch = Stopwatch()
            ray.get(actor.ping.remote())
            worst = max(worst, watch.lap())

    thread = threading.Thread(target=ask, name="pings")
    thread.start()
    try:
        yield lambda: worst
    finally:
        over.set()
        thread.join()


def unique_bytes() -> int:
    """Memory of this process that no other maps."""
    found = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            found += int(line.split()[1]) * 1024
    return found


def anonymous_bytes() -> int:
    """Memory of all processes of this measurement that is no file, neither on disk nor of a store."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                text = Path(f"/proc/{name}/status").read_text()
            except OSError:  # it has ended
                continue
            fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            parents[int(name)] = int(fields["PPid"])
            sizes[int(name)] = int(fields.get("RssAnon", "0 kB").split()[0]) * 1024
    ours = {os.getpid(), os.getppid()}
    # Whoever was orphaned has been handed to the launcher, our parent.
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sum(sizes.get(pid, 0) for pid in ours - {os.getppid()})


@contextmanager
def anonymous_peak() -> Iterator[Callable[[], int]]:
    """The most that `anonymous_bytes` has seen, every tenth of a second."""
    most = 0
    over = threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(0.1):
            most = max(most, anonymous_bytes())

    thread = threading.Thread(target=look, name="memory")
    thread.start()
    try:
        yield lambda: most
    finally:
        over.set()
        thread.join()
