"""The memory monitor of a node, with a kernel and workers that do as they are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from shoal.config import Config
from shoal.core.pool import WorkerState
from shoal.messages.boot import Boot
from shoal.messages.memory import Runs, WhatRuns
from shoal.node.memory_monitor import MemoryMonitor, Occupation
from shoal.node.memory_reading import Level, MemoryReading, Usage
from tests.core.test_leases import Node

MIB = 1 << 20
JOB = SimpleNamespace(job_id=b"job")


class Kernel(MemoryReading):
    """What it says is set; `scans` counts the looks at all processes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.level = Level("the machine", 100 * MIB, 1000 * MIB)
        self.private: dict[int, int] = {}
        self.kills = 0
        self.looks = 0
        self.scans = 0

    def levels(self) -> list[Level]:
        self.looks += 1
        return [self.level]

    def of_groups(self, leaders: Iterable[int]) -> dict[int, int]:
        self.scans += 1
        return {pid: self.private.get(pid, 0) for pid in leaders}

    def biggest(self, but: Any, most: int) -> list[Usage]:
        return [Usage(1, "init", 7 * MIB)][:most]

    def oom_kills(self) -> int:
        return self.kills


class Crew:
    """The workers of a node: a real lease queue, and processes that are only names."""

    def __init__(self) -> None:
        self.node = Node(cpus=8)
        self.queue = self.node.queue
        self.processes: dict[bytes, Any] = {}
        self.ended: list[int] = []
        self.retired: list[int] = []
        self.lines: list[str] = []
        self.asked: list[int] = []

    def lease(self, owner: int, private_mib: int, kernel: Kernel) -> int:
        """A worker that works for somebody; its pid."""
        self.node.request(owner, name="load")
        self.node.settle(1)
        (worker,) = [
            w
            for w in self.queue.pool
            if w.state is WorkerState.LEASED and w.worker_id not in self.processes
        ]
        pid = 100 + len(self.processes)
        kernel.private[pid] = private_mib * MIB
        client = SimpleNamespace(send=lambda message: self.on_message(pid, message))
        self.processes[worker.worker_id] = SimpleNamespace(
            worker_id=worker.worker_id,
            pid=pid,
            job=JOB,
            client=client,
            ordered="",
            status=None,
            occupation=Occupation(),
        )
        return pid

    def on_message(self, pid: int, message: Any) -> None:
        assert isinstance(message, WhatRuns)
        self.asked.append(pid)

    def of(self, pid: int) -> Any:
        return next(p for p in self.processes.values() if p.pid == pid)

    # --- what the monitor uses of `Workers` ----------------------------------------------------------------------

    def process(self, worker_id: bytes) -> Any:
        return self.processes.get(worker_id)

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes.values()]

    def retire(self, worker_ids: list[bytes], _reason: str) -> None:
        self.retired += [self.processes[worker_id].pid for worker_id in worker_ids]

    def order_end(self, process: Any, clause: str, **options: Any) -> None:
        assert options["kill"]
        assert not options["expected"]
        process.ordered = clause
        self.ended.append(process.pid)

    def tell_driver(self, job_id: bytes, text: str) -> None:
        assert job_id == b"job"
        self.lines.append(text)

    def advance(self) -> None:
        """The queue has nothing to do here."""


class Bench:
    """A monitor that looks often, and what it looks at."""

    def __init__(self, folder: Path) -> None:
        self.kernel = Kernel(folder)
        self.crew = Crew()
        config = msgspec.structs.replace(Config(), memory_monitor_refresh_ms=5)
        self.boot = cast("Boot", SimpleNamespace(config=config, shm_dir=str(folder)))

    def run(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            monitor = MemoryMonitor(
                asyncio.get_running_loop(), self.boot, cast("Any", self.crew), self.kernel
            )
            self.monitor = monitor
            try:
                await asyncio.wait_for(story(), 30)
            finally:
                monitor.close()

        asyncio.run(whole())

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.002)

    async def looks(self, count: int) -> None:
        end = self.kernel.looks + count
        await self.until(lambda: self.kernel.looks >= end)

    def fill(self) -> None:
        self.kernel.level = Level("the machine", 980 * MIB, 1000 * MIB)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_far_from_the_limit_no_process_is_looked_at_or_asked(bench: Bench) -> None:
    bench.crew.lease(1, 900, bench.kernel)

    async def story() -> None:
        await bench.looks(20)

    bench.run(story)
    assert bench.kernel.scans == 0
    assert not bench.crew.asked
    assert not bench.crew.ended


def test_turned_off_it_never_looks(bench: Bench) -> None:
    bench.boot.config = msgspec.structs.replace(Config(), memory_monitor_refresh_ms=0)  # type: ignore[misc]  # not a real Boot
    bench.crew.lease(1, 900, bench.kernel)
    bench.fill()

    async def story() -> None:
        # Twenty times as long as another test's monitor waits.
        await asyncio.sleep(0.1)

    bench.run(story)
    assert bench.kernel.looks == 0


def test_one_is_ended_at_a_time(bench: Bench) -> None:
    crew = bench.crew
    first, second = (crew.lease(1, 300, bench.kernel) for _ in range(2))

    async def story() -> None:
        bench.fill()
        await bench.until(lambda: crew.ended)
        assert crew.ended == [second]
        assert crew.asked == [first, second]
        # Until it has gone nothing is looked at.
        looks = bench.kernel.looks
        await asyncio.sleep(0.05)
        assert bench.kernel.looks == looks
        crew.of(second).status = -9
        await bench.until(lambda: len(crew.ended) == 2)
        assert crew.ended == [second, first]

    bench.run(story)
    end = crew.of(second).occupation.end
    assert (end.private_bytes, end.alone) == (300 * MIB, False)
    assert crew.of(first).occupation.end.alone
    assert "init (pid 1) 7 MiB" in end.report
    assert "which was leased for load()" in crew.lines[0]


def test_what_workers_say_in_time_decides(bench: Bench) -> None:
    crew = bench.crew
    old, new = (crew.lease(1, 300, bench.kernel) for _ in range(2))
    # The older lease runs the younger task.
    crew.of(old).occupation.on_runs(Runs(retriable=True, name="young", ran_ns=1))
    crew.of(new).occupation.on_runs(Runs(retriable=True, name="aged", ran_ns=10**12))

    async def story() -> None:
        bench.fill()
        await bench.until(lambda: crew.ended)

    bench.run(story)
    assert crew.ended == [old]
    assert "which ran young()" in crew.lines[0]


def test_actors_and_tasks_that_may_not_be_tried_again_come_last(bench: Bench) -> None:
    crew = bench.crew
    task, last_task, actor = (crew.lease(1, 300, bench.kernel) for _ in range(3))
    crew.of(last_task).occupation.on_runs(Runs(retriable=False))
    crew.of(actor).occupation.restarts = False

    async def story() -> None:
        bench.fill()
        for count in range(1, 4):
            await bench.until(lambda count=count: len(crew.ended) == count)
            crew.of(crew.ended[-1]).status = -9

    bench.run(story)
    assert crew.ended == [task, last_task, actor]
    assert crew.lines[1].endswith("The task fails, since it may not be tried again.")
    assert crew.lines[2].endswith("The actor is lost.")


def test_when_others_have_the_memory_nobody_is_ended_and_it_is_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.crew.lease(1, 1, bench.kernel)

    async def story() -> None:
        bench.fill()
        await bench.until(lambda: bench.kernel.scans >= 3)

    with caplog.at_level(logging.WARNING):
        bench.run(story)
    assert not bench.crew.ended
    (said,) = [record.getMessage() for record in caplog.records]
    assert "980 MiB of the 1000 MiB of the machine were in use" in said
    assert "others use it" in said


def test_each_kill_of_the_kernel_stands_for_one_worker(bench: Bench) -> None:
    crew = bench.crew
    pids = [crew.lease(1, 300, bench.kernel) for _ in range(2)]

    async def story() -> None:
        assert bench.monitor.on_killed(crew.of(pids[0])) == ""
        bench.kernel.kills += 1
        assert "most likely" in bench.monitor.on_killed(crew.of(pids[0]))
        assert bench.monitor.on_killed(crew.of(pids[1])) == ""

    bench.run(story)
    assert crew.of(pids[0]).occupation.end.private_bytes == 0
    assert crew.of(pids[1]).occupation.end is None
    assert len(crew.lines) == 1


def test_a_kill_that_was_counted_before_this_node_began_says_nothing(bench: Bench) -> None:
    bench.kernel.kills = 7
    pid = bench.crew.lease(1, 300, bench.kernel)

    async def story() -> None:
        await bench.looks(2)
        assert bench.monitor.on_killed(bench.crew.of(pid)) == ""

    bench.run(story)
