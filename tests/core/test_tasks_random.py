"""Random histories of an owner's tasks, with a node that grants and refuses, and workers that run, wait, crash and answer late.

The model knows what each task has gone through. Every task ends exactly once; one that may not be retried begins at most
once; nothing is pushed where the rules forbid it; and when the work is done, every lease is back.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.lanes import CancelLease, Lane, RequestLease, ReturnLease, SchedulingClass
from shoal.core.tasks import Function, State, Task, TaskTable
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import Spread
from tests.core.lives import Life

WINDOW_US = 1000
WINDOW_TASKS = 5
MAX_REQUESTS = 3
MOST_WORKERS = 3
SHAPES = [Shape((("CPU", UNIT),)), Shape((("GPU", UNIT),)), Shape(strategy=Spread())]


class Worker:
    """The other end of a lane: runs what came first, and speaks to the owner through a wire that takes its time."""

    def __init__(self, world: World, lane: Lane) -> None:
        self.world = world
        self.lane = lane
        self.inbox: deque[Task] = deque()
        self.running: Task | None = None
        self.waits = False
        self.wire: deque[tuple[str, Any]] = deque()

    def receive(self, task: Task) -> None:
        if self.waits:
            self.wire.append(("handed back", [task.task_id]))
        else:
            self.inbox.append(task)

    def begin(self) -> None:
        if self.running is None and self.inbox:
            self.running = self.inbox.popleft()
            self.world.lives[self.running].begun += 1

    def end(self, how: str) -> None:
        if self.running is not None and not self.waits:
            self.wire.append((how, self.running))
            self.running = None

    def wait(self) -> None:
        """The task that runs waits for others."""
        if self.running is not None and not self.waits:
            self.waits = True
            if self.inbox:
                self.wire.append(("handed back", [task.task_id for task in self.inbox]))
                self.inbox.clear()
            self.wire.append(("pause", False))

    def go_on(self) -> None:
        if self.waits:
            self.waits = False
            self.wire.append(("resume", None))

    def cancel(self, task: Task) -> None:
        if task is self.running:
            self.waits = False
            self.running = None
        elif task in self.inbox:
            self.inbox.remove(task)
        else:
            return
        self.wire.append(("cancelled", task))


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.table = TaskTable(WINDOW_US, WINDOW_TASKS, MAX_REQUESTS, lease_idle_ms=50)
        self.now = 0.0
        self.requests: dict[int, SchedulingClass] = {}
        self.workers: dict[Lane, Worker] = {}
        self.lives: dict[Task, Life] = {}
        self.waiting: list[Task] = []
        self.cancels: list[tuple[Worker, Task]] = []
        # Whose workers were ended for want of memory: those that pause now, and how often each did.
        self.pausing: list[Task] = []
        self.shortages: dict[Task, int] = {}
        self.functions = [Function(i, b"", f"f{i}", b"") for i in range(3)]
        self.took_us = [1, 300, 5000]
        self.numbers = itertools.count(1)
        self.steps = [
            *[self.submit] * 6,
            *[self.run] * 8,
            *[self.deliver] * 8,
            *[self.grant] * 4,
            *[self.wait] * 2,
            *[self.go_on] * 2,
            *[self.cancel] * 2,
            *[self.deliver_cancel] * 2,
            *[self.take] * 2,
            self.ready,
            *[self.refuse] * 3,
            self.crash,
            self.shortage,
            self.unpause,
            self.wanted,
            *[self.delay] * 2,
            self.retire,
            self.expire,
        ]

    # --- the owner's side --------------------------------------------------------------------------------------------

    def live_tasks(self, *states: State) -> list[Task]:
        return [task for task in self.lives if task.state in states]

    def submit(self) -> None:
        for _ in range(self.rng.choice([1, 1, 2, 8])):
            queue = self.table.scheduling_class(self.rng.choice(SHAPES))
            retries = self.rng.choice([3, 3, 1, 0, -1])
            task_id = next(self.numbers).to_bytes(4, "big")
            task = Task(task_id, self.rng.choice(self.functions), queue, b"", (), retries)
            task.unready = self.rng.choice([0, 0, 0, 2])
            self.lives[task] = Life(retries)
            self.waiting += [task] * task.unready
            self.table.submit(task)

    def ready(self) -> None:
        if self.waiting:
            self.table.dependency_ready(self.waiting.pop(self.rng.randrange(len(self.waiting))))

    def cancel(self) -> None:
        tasks = self.live_tasks(State.WAITING, State.QUEUED, State.PUSHED)
        if not tasks:
            return
        task = self.rng.choice(tasks)
        lane = task.lane
        state = self.table.cancel(task)
        if state is State.PUSHED:
            self.cancels.append((self.workers[lane], task))
        else:
            self.lives[task].ends("cancelled")

    def take(self) -> None:
        """Run a task in this process; one in three fails with an exception that is retried."""
        if tasks := self.live_tasks(State.QUEUED):
            task = self.rng.choice(tasks)
            assert self.table.take(task, task.queue.shape)
            self.lives[task].begun += 1
            task.state = State.FINISHED
            self.ended(task, self.rng.choice(["done", "done", "raised"]))

    def ended(self, task: Task, how: str) -> None:
        if how == "raised" and task.retries and not task.cancelled:
            task.retries -= task.retries > 0
            self.table.retry(task)
        else:
            self.lives[task].ends(how)

    # --- the node ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out what the table decided, and let it check itself."""
        while self.table.outbox:
            effect = self.table.outbox.pop(0)
            match effect:
                case RequestLease(req, queue):
                    assert req not in self.requests
                    self.requests[req] = queue
                    asked = [req for req, of in self.requests.items() if of is queue]
                    assert len(asked) <= MAX_REQUESTS
                case CancelLease(req):
                    del self.requests[req]
                case ReturnLease(lane):
                    assert not lane.inflight
                    worker = self.workers.pop(lane)
                    assert worker.running is None
                    assert not worker.inbox
        for queue in self.table.classes.values():
            asked = [req for req, of in self.requests.items() if of is queue]
            assert asked == list(queue.requests)
        self.table.check()

    def grant(self) -> None:
        if self.requests and len(self.workers) < MOST_WORKERS:
            self.grant_one(self.rng.choice(list(self.requests)))

    def grant_one(self, req: int) -> None:
        queue = self.requests.pop(req)
        lane = Lane(queue, req, "", 1, self.push)
        self.workers[lane] = Worker(self, lane)
        self.table.granted(req, queue, lane, self.now)

    def push(self, lane: Lane, task: Task) -> None:
        others = [other for other in lane.inflight.values() if other is not task]
        assert lane.is_open()
        assert lane.queue is task.queue
        assert not task.cancelled
        assert not self.lives[task].end
        assert len(others) < WINDOW_TASKS
        if others:
            assert not task.suspect
            assert task.retries, "a task that may not be retried was pushed behind another"
            assert sum(other.cost_us for other in others) < WINDOW_US
            assert not any(other.suspect for other in others)
            assert all(other.retries or other.cancelled for other in others)
        self.workers[lane].receive(task)

    def refuse(self) -> None:
        if self.requests and self.rng.random() < 0.3:
            req = self.rng.choice(list(self.requests))
            queue = self.requests.pop(req)
            served = any(lane.is_open() for lane in queue.lanes)
            failed = self.table.refused(req, queue)
            # Either the workers that are there go on, or everything has failed: then nothing is left of the refusal.
            assert queue.refused is served
            assert not (served and failed)
            for task in failed:
                self.lives[task].ends("refused")
            assert served or not any(task.state is State.QUEUED for task in queue.queue)
        for queue in self.table.classes.values():
            if self.rng.random() < 0.3:
                self.table.ask_again(queue)

    def wanted(self) -> None:
        if self.workers:
            self.table.wanted(self.rng.choice(list(self.workers)))

    def delay(self) -> None:
        """The node says that something waits; perhaps it has been served or withdrawn by then."""
        queues = [*self.requests.values(), *self.table.classes.values()]
        if queues:
            self.table.delayed(self.rng.choice(queues))

    def expire(self) -> None:
        self.now += self.rng.choice([0.01, 0.06])
        self.table.expire(self.now)

    # --- the workers -------------------------------------------------------------------------------------------------

    def some_worker(self) -> Worker | None:
        return self.rng.choice(list(self.workers.values())) if self.workers else None

    def run(self) -> None:
        for worker in self.workers.values():
            if self.rng.random() < 0.5:
                worker.begin()
            if self.rng.random() < 0.5:
                worker.end(self.rng.choice(["done"] * 5 + ["raised"]))

    def wait(self) -> None:
        if worker := self.some_worker():
            worker.wait()

    def go_on(self) -> None:
        if worker := self.some_worker():
            worker.go_on()

    def retire(self) -> None:
        worker = self.some_worker()
        if worker is not None and worker.running is not None:
            worker.wait()
            worker.wire.append(("pause", True))

    def deliver_cancel(self) -> None:
        if self.cancels:
            worker, task = self.cancels.pop(self.rng.randrange(len(self.cancels)))
            worker.cancel(task)

    def deliver(self) -> None:
        if worker := self.some_worker():
            self.deliver_from(worker, self.rng.choice([1, 2, 100]))

    def deliver_from(self, worker: Worker, most: int) -> None:
        """A batch of what a worker has said."""
        lane, table = worker.lane, self.table
        touched = False
        for _ in range(min(most, len(worker.wire))):
            kind, what = worker.wire.popleft()
            if lane.returned:
                assert kind == "resume"
                continue
            match kind:
                case "handed back":
                    for task in table.handed_back(lane, what):
                        self.lives[task].ends("cancelled")
                    touched = True
                case "pause":
                    table.paused(lane, retiring=what)
                case "resume":
                    table.resumed(lane)
                case _:
                    function = what.function
                    table.finished(what, self.took_us[function.index])
                    self.ended(what, kind)
                    touched = True
        if touched:
            table.refill(lane, self.now)

    def crash(self) -> None:
        worker = self.some_worker()
        if worker is not None and self.rng.random() < 0.5:
            # What it said last may not have left.
            self.deliver_from(worker, self.rng.choice([0, 1, 100]))
            self.settle()
            self.lose(worker)

    def shortage(self) -> None:
        """The node ends a worker because memory is short: nobody is charged, and what it ran pauses."""
        worker = self.some_worker()
        if worker is None or self.rng.random() < 0.5:
            return
        self.deliver_from(worker, self.rng.choice([0, 1, 100]))
        self.settle()
        if worker.lane not in self.workers:
            return
        others = list(worker.lane.inflight.values())
        task = self.table.set_aside(worker.lane)
        if task is None:
            assert not others or others[0].cancelled
        else:
            assert task is others.pop(0)
            assert task.state is State.WAITING
            if self.lives[task].retries:
                self.pausing.append(task)
                self.shortages[task] = self.shortages.get(task, 0) + 1
            else:
                task.state = State.FINISHED
                self.lives[task].ends("out of memory")
        self.lose(worker, charge=False)

    def unpause(self) -> None:
        if self.pausing:
            task = self.pausing.pop(self.rng.randrange(len(self.pausing)))
            if task.state is State.WAITING:
                self.table.retry(task)

    def lose(self, worker: Worker, *, charge: bool = True) -> None:
        lane = worker.lane
        if self.workers.pop(lane, None) is None:
            return
        worker.wire.clear()
        self.cancels = [(at, task) for at, task in self.cancels if at is not worker]
        attempts = {task: (task.attempt, task.retries) for task in lane.inflight.values()}
        failed = self.table.lost(lane, charge=charge)
        charged = [t for t, before in attempts.items() if (t.attempt, t.retries) != before]
        assert len(charged) + len([task for task in failed if not task.cancelled]) <= charge
        for task in failed:
            assert task.cancelled or not attempts[task][1]
            self.lives[task].ends("cancelled" if task.cancelled else "crashed")

    # --- the whole ---------------------------------------------------------------------------------------------------

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice(self.steps)()
            self.settle()

    def finish(self) -> None:
        """Nothing bad happens any more: everything runs to its end."""
        for _ in range(1_000):
            for task in self.waiting:
                self.table.dependency_ready(task)
            self.waiting.clear()
            while self.pausing:
                self.unpause()
            while self.cancels:
                worker, task = self.cancels.pop()
                worker.cancel(task)
            for worker in list(self.workers.values()):
                worker.go_on()
                worker.begin()
                worker.end("done")
                self.deliver_from(worker, 100)
                self.settle()
            self.now += 0.1
            self.table.expire(self.now)
            self.settle()
            self.grant()
            self.settle()
            if all(life.end for life in self.lives.values()):
                break
        else:
            raise AssertionError([t for t, life in self.lives.items() if not life.end][:5])
        self.now += 100
        assert self.table.expire(self.now) is None
        self.settle()

    def assert_that_all_ended(self) -> None:
        """Every task in one of the ways that it may, and every lease is back."""
        assert not self.workers
        assert not self.requests
        for task, life in self.lives.items():
            life.assert_that_it_ended(task)
            assert task.lane is None
            if life.retries == 0:
                assert life.begun <= 1, f"{task} may not be retried and began {life.begun} times"
            if life.retries >= 0:
                assert task.attempt <= life.retries + self.shortages.get(task, 0)


@settings(max_examples=5 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_every_task_ends_once_and_every_lease_comes_back(seed: int) -> None:
    world = World(seed)
    world.walk(steps=100)
    world.finish()
    world.assert_that_all_ended()


@pytest.mark.parametrize("culprit", [0, 3, 7])
def test_the_one_that_kills_workers_is_found_by_itself(culprit: int) -> None:
    # One of eight ends every process that runs it, and takes the replies with it that have not left. Seven are innocent.
    world = World(seed=1)
    queue = world.table.scheduling_class(SHAPES[0])
    world.functions[0].average_us = 1
    tasks = [Task(bytes([number]), world.functions[0], queue, b"", (), 3) for number in range(8)]
    for task in tasks:
        world.lives[task] = Life(3)
        world.table.submit(task)
    world.settle()
    for _ in range(100):
        for worker in list(world.workers.values()):
            while worker.inbox and worker.running is not tasks[culprit]:
                worker.begin()
                if worker.running is tasks[culprit]:
                    world.lose(worker)
                else:
                    worker.end("done")
            world.deliver_from(worker, 100)
            world.settle()
        world.grant()
        world.settle()
    assert [life.end for life in world.lives.values()] == [
        "crashed" if number == culprit else "done" for number in range(8)
    ]
    # Only the first loss could hit an innocent one: after it, each runs alone.
    assert sum(task.attempt for task in tasks if task is not tasks[culprit]) <= 1
