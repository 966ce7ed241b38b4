"""What a driver thread does under stress: one scenario after the other, each with its results checked.

A scenario is a method whose name begins with `do_`. It draws its sizes from the thread's own generator, so that a seed says what was
asked for (not in which order the cluster did it). Whatever it holds on to for later is in `_held`, with the check that is
due when it is let go.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from typing import Any, Final

import shoal
from shoal.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    OwnerDiedError,
    TaskCancelledError,
    TaskError,
    WorkerCrashedError,
)
from shoal.util import state
from tests.stress import workload as work

PATIENCE_S: Final = 60.0
"""What takes longer than this hangs."""

KINDS: Final[dict[str, type[Exception]]] = {
    "value": ValueError,
    "key": KeyError,
    "odd": work.OddError,
}

SHORT: Final = (1_250, 12_500)
"""Lengths of arrays of 10 KB to 100 KB: inside messages, or just not."""
LONG: Final = (12_500, 655_000)
"""100 KB to 5 MB."""


def get(refs: Any) -> Any:
    try:
        return shoal.get(refs, timeout=PATIENCE_S)
    except GetTimeoutError as error:
        error.add_note(why_it_waits(str(error)))
        raise


def why_it_waits(text: str) -> str:
    """What the cluster says about what a message names last, and what its nodes have left."""
    named = re.findall(r"\b[0-9a-f]{24,}\b", text)
    try:
        reasons = str(state.why(named[-1])) if named else "nothing is named"
        nodes = "\n".join(str(row) for row in state.list_nodes())
        workers = "\n".join(str(row) for row in state.list_workers())
    except (ValueError, ConnectionError) as error:
        return f"the cluster cannot say why: {error}"
    return f"{reasons}\n{nodes}\n{workers}"


class Shared:
    """Actors that all driver threads use."""

    def __init__(self) -> None:
        self.counter = work.Counter.remote()
        self.threaded = work.Threaded.remote()
        self.asynchronous = work.Async.remote()


class Driver:
    """See the module's docstring. `run` raises what went wrong, with the scenario and its number in a note."""

    def __init__(self, seed: int, shared: Shared, crashes: bool) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self._crashes = crashes
        # What a worker owns and lends is lost when another task kills the worker.
        self._may_be_lost: tuple[type[Exception], ...] = (OwnerDiedError,) if crashes else ()
        self.done: dict[str, int] = {}
        self._shared = shared
        self._next_seed = seed << 32
        self._held: list[Callable[[], None]] = []
        self._scenarios = [
            getattr(self, name)
            for name in sorted(dir(self))
            if name.startswith("do_") and (crashes or name != "do_crash")
        ]

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            scenario = self.rng.choice(self._scenarios)
            name = scenario.__name__
            number = sum(self.done.values())
            try:
                scenario()
                while len(self._held) > self.rng.randrange(1, 12):
                    self._held.pop(self.rng.randrange(len(self._held)))()
            except BaseException as error:
                error.add_note(f"in {name}, number {number} of the driver with seed {self.seed}")
                raise
            self.done[name] = self.done.get(name, 0) + 1
        for release in self._held:
            release()
        self._held.clear()

    # --- random things -----------------------------------------------------------------------------------------------

    def length(self) -> int:
        return self.rng.randint(*(SHORT if self.rng.random() < 0.6 else LONG))

    def array_seed(self) -> int:
        self._next_seed += 1_000_000
        return self._next_seed

    def hold(self, array: Any, seed: int, length: int) -> None:
        """Keep a view, and see later that nobody has written over it."""
        self._held.append(lambda: work.check_array(array, seed, length))

    # --- small tasks -------------------------------------------------------------------------------------------------

    def do_echo(self) -> None:
        count = self.rng.randrange(1, 400)
        refs = [work.echo.remote(n) for n in range(count)]
        assert get(refs) == list(range(count))

    def do_echo_one_by_one(self) -> None:
        for n in range(self.rng.randrange(1, 40)):
            assert get(work.echo.remote(n)) == n

    def do_wait(self) -> None:
        missing = [work.echo.remote(n) for n in range(self.rng.randrange(1, 60))]
        numbers = {ref: n for n, ref in enumerate(missing)}
        while missing:
            most = self.rng.randrange(1, len(missing) + 1)
            timeout = self.rng.choice([None, 0.001, 1.0])
            ready, missing = shoal.wait(missing, num_returns=most, timeout=timeout)
            assert len(ready) == most if timeout is None else len(ready) <= most
            for ref in ready:
                assert get(ref) == numbers.pop(ref)
        assert not numbers

    def do_forget(self) -> None:
        """Tasks whose results nobody ever wants."""
        for n in range(self.rng.randrange(1, 100)):
            work.echo.remote(n)
        work.array.remote(0, self.length())

    def do_chain(self) -> None:
        ref = work.echo.remote(0)
        side = work.echo.remote(1)
        length = self.rng.randrange(1, 50)
        for _ in range(length):
            ref = work.add.remote(ref, side, extra=ref)
        assert get(ref) == 2**length - 1

    def do_await(self) -> None:
        count = self.rng.randrange(1, 50)

        async def gather() -> list[int]:
            return list(await asyncio.gather(*(work.echo.remote(n) for n in range(count))))

        assert asyncio.run(gather()) == list(range(count))

    def do_futures(self) -> None:
        refs = [work.echo.remote(n) for n in range(self.rng.randrange(1, 50))]
        futures = [ref.future() for ref in refs]
        del refs
        assert [future.result(PATIENCE_S) for future in futures] == list(range(len(futures)))

    def do_get_too_early(self) -> None:
        ref = work.sleep.remote(0.05)
        try:
            shoal.get(ref, timeout=self.rng.random() * 0.02)
        except GetTimeoutError as error:
            assert "sleep" in str(error)  # noqa: PT017 - whether it comes is a matter of chance
        assert get(ref) == 0.05

    # --- nested tasks ------------------------------------------------------------------------------------------------

    def do_fibonacci(self) -> None:
        assert get(work.fibonacci.remote(10)) == 55

    def do_tree(self) -> None:
        depth, width = self.rng.choice([(2, 5), (3, 3), (5, 2)])
        assert get(work.count_leaves.remote(depth, width)) == width**depth

    def do_refs_through_levels(self) -> None:
        try:
            leaves = get(work.refs_to_leaves.remote(3, 3))
            assert get(leaves) == [1] * 27
        except self._may_be_lost:
            return

    # --- large objects -----------------------------------------------------------------------------------------------

    def do_arrays(self) -> None:
        length = self.length()
        seeds = [self.array_seed() for _ in range(self.rng.randrange(1, 6))]
        refs = [work.array.remote(seed, length) for seed in seeds]
        checks = [
            work.check.remote(ref, seed, length) for ref, seed in zip(refs, seeds, strict=True)
        ]
        assert get(work.check_all.remote(refs, seeds, length)) == len(seeds)
        assert get(checks) == seeds
        self.hold(get(refs[0]), seeds[0], length)

    def do_put(self) -> None:
        length, seed = self.length(), self.array_seed()
        ref = shoal.put(work.make_array(seed, length))
        again = work.check.remote(ref, seed, length)
        self.hold(get(ref), seed, length)
        part = get(work.slice_of.remote(ref, 5, length - 5))
        del ref
        self.hold(part, seed + 5, length - 10)
        assert get(again) == seed

    def do_several_returns(self) -> None:
        length = self.length()
        seeds = [self.array_seed() for _ in range(3)]
        first, *others = work.arrays.options(num_returns=3).remote(seeds, length)
        del others[0]
        self.hold(get(first), seeds[0], length)
        self.hold(get(others[0]), seeds[2], length)

    def do_borrow_from_task(self) -> None:
        length = self.length()
        seeds = [self.array_seed() + n % 2 for n in range(4)]
        lent = get(work.lend.remote(seeds, length))
        again = work.check_all.remote(list(lent.values()), seeds, length)
        seed, ref = lent.popitem()
        del lent
        if self.rng.random() < 0.1:
            # Long enough for a worker that has nothing to do but to own them.
            time.sleep(1.5)
        try:
            self.hold(get(ref), seed, length)
            assert get(again) == len(seeds)
        except self._may_be_lost:
            return

    def do_keep_in_actor(self) -> None:
        counter, length = self._shared.counter, self.length()
        seeds = [self.array_seed() for _ in range(2)]
        key = seeds[0]
        refs = [shoal.put(work.make_array(seeds[0], length)), work.array.remote(seeds[1], length)]
        kept = counter.keep.remote(key, refs)
        del refs
        assert get(kept) >= 1
        assert get(counter.check_kept.remote(key, seeds, length)) == 2
        back = get(counter.take.remote(key))
        for ref, seed in zip(back, seeds, strict=True):
            self.hold(get(ref), seed, length)

    def do_boxes_in_boxes(self) -> None:
        length, seed = self.length(), self.array_seed()
        box = [work.array.remote(seed, length)]
        for _ in range(self.rng.randrange(1, 6)):
            box = [shoal.put(box) if self.rng.random() < 0.5 else work.echo.remote(box)]
        value: Any = box
        while isinstance(value, list):
            value = get(value[0])
        self.hold(value, seed, length)

    # --- streams -----------------------------------------------------------------------------------------------------

    def do_stream(self) -> None:
        length, seed, count = self.length(), self.array_seed(), self.rng.randrange(1, 12)
        window = self.rng.choice([-1, 1, 3])
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": window}
        source = self.rng.choice([work.stream, self._shared.counter.stream])
        items = source.options(**options).remote(seed, length, count)
        stop_at = self.rng.choice([count, count // 2])
        for n, ref in zip(range(stop_at), items, strict=False):
            work.check_array(get(ref), seed + n, length)
        if stop_at == count:
            assert next(items, None) is None

    def do_stream_that_fails(self) -> None:
        length, seed = self.length(), self.array_seed()
        items = work.stream.options(num_returns="streaming").remote(seed, length, 8, 4)
        refs = list(items)
        assert len(refs) == 5
        for n, ref in enumerate(refs[:4]):
            work.check_array(get(ref), seed + n, length)
        self.expect(work.OddError, refs[4])

    # --- errors ------------------------------------------------------------------------------------------------------

    def expect(self, kind: type[BaseException], ref: Any) -> BaseException:
        try:
            value = get(ref)
        except kind as error:
            return error.with_traceback(None)
        raise AssertionError(f"no {kind.__name__} but {value!r}")

    def do_errors(self) -> None:
        code = self.rng.randrange(1000)
        kind = self.rng.choice(list(KINDS))
        refs = [work.fail.remote(code, kind) for _ in range(self.rng.randrange(1, 30))]
        after = work.echo.remote(refs[0])
        for ref in [*refs, after]:
            error = self.expect(KINDS[kind], ref)
            assert isinstance(error, TaskError)
            assert str(code) in str(error)

    def do_error_from_below(self) -> None:
        kind = self.rng.choice(list(KINDS))
        error = self.expect(KINDS[kind], work.fail_below.remote(4, 77, kind))
        assert "77" in str(error)

    def do_crash(self) -> None:
        self.expect(WorkerCrashedError, work.crash.remote())

    # --- cancelling --------------------------------------------------------------------------------------------------

    def do_cancel(self) -> None:
        refs = [work.sleep.remote(1000) for _ in range(self.rng.randrange(1, 8))]
        if self.rng.random() < 0.5:
            time.sleep(self.rng.random() * 0.02)
        for ref in refs:
            shoal.cancel(ref, force=self._crashes and self.rng.random() < 0.1)
        for ref in refs:
            self.expect((TaskCancelledError, WorkerCrashedError), ref)  # type: ignore[arg-type]  # as in `except`

    def do_cancel_some(self) -> None:
        """Each either has its value or was cancelled, whoever was faster."""
        refs = [work.echo.remote(n) for n in range(100)]
        for ref in refs[::3]:
            shoal.cancel(ref)
        for n, ref in enumerate(refs):
            try:
                assert get(ref) == n
            except TaskCancelledError:
                assert n % 3 == 0

    def do_cancel_below(self) -> None:
        ref = work.sleep_below.remote(self.rng.randrange(3), 1000)
        time.sleep(self.rng.random() * 0.02)
        shoal.cancel(ref)
        self.expect(TaskCancelledError, ref)

    def do_cancel_async(self) -> None:
        ref = self._shared.asynchronous.forever.remote()
        shoal.cancel(ref)
        self.expect(TaskCancelledError, ref)

    # --- actors ------------------------------------------------------------------------------------------------------

    def do_actor(self) -> None:
        start = self.rng.randrange(1000)
        counter = work.Counter.remote(start)
        count = self.rng.randrange(1, 100)
        inside = None
        if self.rng.random() < 0.5:
            inside = work.use_actor.remote(counter, 5)
        refs = [counter.increment.remote() for _ in range(count)]
        error = counter.fail.remote(5)
        numbers = get(refs)
        if inside is None:
            assert numbers == list(range(start + 1, start + count + 1))
        else:
            # The calls of each caller run in its order, and those of both one at a time.
            others = get(inside)
            assert numbers == sorted(numbers)
            assert others == sorted(others)
            assert sorted(numbers + others) == list(range(start + 1, start + count + 6))
        assert isinstance(self.expect(work.OddError, error), TaskError)
        length, seed = self.length(), self.array_seed()
        if self.rng.random() < 0.5:
            # Its objects outlive it.
            ref = counter.array.remote(seed, length)
            del counter
            self.hold(get(ref), seed, length)

    def do_kill_actor(self) -> None:
        counter = work.Counter.remote()
        assert get(counter.increment.remote()) == 1
        running = counter.total.remote(2, 2)
        shoal.kill(counter)
        try:
            # The order to kill it and the calls go different ways.
            assert get(running) == 4
            while True:
                get(counter.increment.remote())
        except ActorDiedError as error:
            assert "shoal.kill()" in str(error)  # noqa: PT017 - how far the calls come is a matter of chance

    def do_shared_counter(self) -> None:
        counter = self._shared.counter
        numbers = get([counter.increment.remote() for _ in range(self.rng.randrange(1, 100))])
        assert numbers == sorted(set(numbers))

    def do_nested_in_actor(self) -> None:
        assert get(self._shared.counter.total.remote(2, 3)) == 9

    def do_threaded(self) -> None:
        threaded = self._shared.threaded
        refs = [threaded.add.remote(1) for _ in range(self.rng.randrange(1, 100))]
        nested = threaded.nested.remote(2, 3)
        length, seed = self.length(), self.array_seed()
        array = threaded.array.remote(seed, length)
        totals = get(refs)
        assert len(set(totals)) == len(totals)
        assert get(nested) == 9
        self.hold(get(array), seed, length)

    def do_async(self) -> None:
        asynchronous = self._shared.asynchronous
        count = self.rng.randrange(1, 100)
        refs = [asynchronous.add.remote(n, n) for n in range(count)]
        nested, gathered = asynchronous.nested.remote(2, 3), asynchronous.gather.remote(20)
        length, seed = self.length(), self.array_seed()
        checked = asynchronous.check.remote([work.array.remote(seed, length)], seed, length)
        assert get(refs) == [2 * n for n in range(count)]
        assert get([nested, gathered, checked]) == [9, 190, seed]
