"""Random programs in a simulated cluster: nothing is freed that could be reached, and nothing else is kept.

The processes, and what is real in them, are in `reference_cluster`; what must be true is in `reference_model`. A walk is made by a seed
alone, so any that has failed can be walked again (`tests/fuzz.py`, which walks tens of thousands more).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from shoal.core.references import Entry
from tests.core.reference_cluster import Cluster
from tests.core.reference_model import Model
from tests.core.reference_process import Actor, Process, Running

SCHEDULES = 500
STEPS = 160


class Weights(NamedTuple):
    """How often each kind of step is taken."""

    step: int = 12
    drop: int = 6
    finish: int = 4
    submit: int = 4
    get: int = 4
    put: int = 2
    item: int = 2
    take: int = 2
    abandon: int = 1
    create: int = 1
    in_place: int = 1
    kill: int = 0
    quiet: int = 1


# Half of all walks have no deaths: there nothing is excused.
QUIET = Weights()
DEADLY = Weights(kill=1)


class Walk:
    """A random walk: each step lets the user's code somewhere do something, or something happen."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(self.rng)
        self.model = Model(self.cluster)
        self.deaths = 0
        self.weights = DEADLY if seed % 2 else QUIET
        for _ in range(self.rng.randint(2, 5)):
            self.cluster.start()
        self.choices: list[Callable[[], None]] = [
            getattr(self, name)
            for name, weight in self.weights._asdict().items()
            for _ in range(weight)
        ]

    def run(self, steps: int = STEPS) -> None:
        for _ in range(steps):
            self.rng.choice(self.choices)()
            self.model.check()
        self.end()

    # --- choices -------------------------------------------------------------------------------------------------------

    def someone(self) -> Process:
        return self.rng.choice(self.cluster.living())

    def some(self, entries: list[Entry]) -> list[Entry]:
        """Some of the handles, each once."""
        entries = list(dict.fromkeys(entries))
        return self.rng.sample(entries, min(len(entries), self.rng.choice([0, 1, 1, 2])))

    def task(self, streams: bool | None = None) -> tuple[Process, Running] | None:
        """A task that runs and could go on."""
        found = [
            (process, task)
            for process in self.cluster.running()
            for task in process.running
            if not task.sending and streams in {None, task.streams}
        ]
        return self.rng.choice(found) if found else None

    def without(self, entries: list[Entry], circle: bytes) -> list[Entry]:
        """Those from which there is no way to `circle`. Counting references never frees a circle; programs can make one only by
        actors that keep handles on each other, and by tricks."""
        return [entry for entry in entries if circle not in self.model.closure([entry.object_id])]

    def keepable(self, process: Process, entries: list[Entry]) -> list[Entry]:
        """What a process may keep."""
        return entries if process.actor is None else self.without(entries, process.actor.handle)

    def perhaps_drop(self, process: Process, entries: list[Entry]) -> None:
        """What has been passed on, put or read is often not needed any more."""
        if self.rng.random() < 0.5:
            for entry in entries:
                if entry in process.handles:
                    process.handles.remove(entry)
                    process.drop(entry)

    # --- steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        if steps := self.cluster.steps():
            self.rng.choice(steps)()

    def put(self) -> None:
        process = self.someone()
        task = None
        entries = process.handles
        if process.running and self.rng.random() < 0.5:
            task = self.rng.choice(process.running)
            entries = [*entries, *task.handles]
        inners = self.some(entries)
        process.put(inners, task)
        self.perhaps_drop(process, inners)

    def submit(self) -> None:
        process = self.someone()
        entries = list(process.handles)
        if process.running:
            entries += self.rng.choice(process.running).handles
        actors = [
            actor
            for entry in entries
            if (actor := self.cluster.actors.get(entry.object_id)) is not None
            # Nobody would know of a call by whoever is about to end.
            and entry.object_id in process.objects.entries
        ]
        to: str | Actor = self.cluster.some_worker()
        if actors and self.rng.random() < 0.7:
            to = self.rng.choice(actors)
        values = [e for e in entries if e.object_id not in self.cluster.actors]
        deps = self.some(values) if self.rng.random() < 0.3 else []
        streams, retries = self.rng.random() < 0.2, self.rng.choice([0, 1, 2])
        refs = self.some(entries)
        process.submit(to, refs, deps, streams, retries)
        self.perhaps_drop(process, refs)

    def in_place(self) -> None:
        process = self.someone()
        entries = [*process.handles, *(e for task in process.running for e in task.handles)]
        tasks = [task for task in process.tasks.values() if not task.pushed and not task.stream]
        if tasks:
            task = self.rng.choice(tasks)
            process.run_in_place(task, self.without(self.some(entries), task.task_id))

    def create(self) -> None:
        process = self.someone()
        args = self.some(process.handles)
        process.create(args, self.rng.choice([0, 0, 1, 2]))
        self.perhaps_drop(process, args)

    def get(self) -> None:
        process = self.someone()
        for entry in self.some(process.handles):
            if entry.object_id not in self.cluster.actors:
                is_there = entry.value is not None
                process.get(entry)
                if is_there:
                    # It has handles for what is inside, and no need of the object any more.
                    self.perhaps_drop(process, [entry])

    def drop(self) -> None:
        process = max(self.cluster.living(), key=lambda p: len(p.handles) * self.rng.random())
        if process.handles:
            process.drop(process.handles.pop(self.rng.randrange(len(process.handles))))

    def finish(self) -> None:
        if (found := self.task()) is None:
            return
        process, task = found
        # It returns some of what it was given, and some of what the process has (the state of an actor), which the process
        # then forgets or keeps.
        for entry in self.some(process.handles):
            if self.rng.random() < 0.5:
                process.handles.remove(entry)
            else:
                process.take(entry)
            task.handles.append(entry)
        returned = None
        if self.rng.random() < 0.9:
            returned = self.without(self.some(task.handles), task.task_id)
        keeps = []
        if self.rng.random() < 0.4:
            keeps = self.keepable(process, self.some(task.handles))
        process.finish(task, returned, keeps)

    def item(self) -> None:
        if (found := self.task(streams=True)) is not None:
            process, task = found
            lent = self.without(self.some([*task.handles, *process.handles]), task.task_id)
            process.yield_item(task, lent)

    def take(self) -> None:
        process = self.someone()
        if process.generators:
            process.next(self.rng.choice(process.generators))

    def abandon(self) -> None:
        process = self.someone()
        if process.generators:
            process.abandon(self.rng.choice(process.generators))

    def kill(self) -> None:
        victims = [process for process in self.cluster.running() if not process.ends_orderly]
        # Whoever starts the first work is left, and two more to run it.
        if self.rng.random() < 0.5 or len(victims) < 2:
            return
        victim = self.rng.choice(victims[1:])
        if victim.actor is None:
            self.cluster.start()
        if self.rng.random() < 0.3 and not victim.fenced:
            self.cluster.fence(victim)
        else:
            self.cluster.kill(victim)
        self.deaths += 1

    def quiet(self) -> None:
        if self.rng.random() < 0.15:
            self.let_speak()
            if not any(process.running for process in self.cluster.running()):
                self.model.check_quiet()

    # --- the end -------------------------------------------------------------------------------------------------------

    def let_speak(self) -> None:
        """Until nobody has anything to say."""
        for process in self.cluster.running():
            process.settle()
        while steps := self.cluster.steps():
            self.rng.choice(steps)()

    def finish_all(self) -> None:
        self.let_speak()
        while (found := self.task()) is not None:
            process, task = found
            process.finish(task, [], [])
            self.let_speak()
        self.model.check()

    def end(self) -> None:
        """Let everything finish, drop every handle, and see that nothing is left."""
        self.finish_all()
        self.model.check_quiet()
        for process in self.cluster.living():
            if process.actor is None:
                process.dropped += process.handles
                process.handles = []
                for generator in list(process.generators):
                    process.abandon(generator)
        self.finish_all()
        self.model.check_quiet()
        self.model.check_that_nothing_is_left()


def walk(seed: int) -> Walk:
    """Walk, and say which walk it was that failed."""
    made = Walk(seed)
    try:
        made.run()
    except Exception as error:
        error.add_note(
            f"seed {seed}: walk it again with `python -m tests.fuzz --only references --seed {seed}`"
        )
        raise
    return made


@pytest.mark.parametrize("part", range(10))
def test_nothing_reachable_is_freed_and_nothing_else_is_kept(part: int) -> None:
    for seed in range(part, SCHEDULES, 10):
        walk(seed)
