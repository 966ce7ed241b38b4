"""The load of one driver: tasks of many kinds, large objects with random lifetimes, and borrowers that are killed.

Operations are drawn until the driver has submitted its tasks and made its objects; those of tasks (`task_…`) and those of objects
(`object_…`) take turns, so that both are through at the same time. What an operation makes is checked, and then let go at once, soon,
late, or when all that this driver holds would exceed its budget. It is held by the driver, inside other objects, in the state of actors,
or by borrowers only.

Guarantees: the seed says what is asked for, though not in which order the cluster does it. Everything that is held is looked at once more
when it is let go. That something is lost is accepted only if its owner may have been killed, and counted.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import os
import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import shoal
from shoal.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    OwnerDiedError,
    TaskError,
    WorkerCrashedError,
)
from tests.stress.drivers import why_it_waits
from tests.stress.week import work
from tests.stress.week.work import Spec

PATIENCE_S: Final = 240.0
"""What takes longer than this hangs, on a busy machine too."""

LOST: Final = (OwnerDiedError, ObjectLostError, ActorDiedError, WorkerCrashedError)
"""What may happen to things of those that are killed."""

SMALLEST: Final = 110_000
LARGEST: Final = 4_000_000
HUGE: Final = (6_000_000, 16_000_000)
"""Bytes: a hundredth of the objects is that large."""


@dataclass
class Tally:
    """What was done. `objects` are the large ones."""

    tasks: int = 0
    calls: int = 0
    objects: int = 0
    bytes: int = 0
    small_objects: int = 0
    checked: int = 0
    kills: int = 0
    lost: int = 0
    borrows: int = 0


@dataclass(frozen=True)
class Share:
    """What a driver has to do."""

    seed: int
    tasks: int
    objects: int
    kills: int
    budget_bytes: int
    nodes: int
    borrowers: int = 3


@dataclass
class Held:
    """Something to be let go: `release` looks at it, and forgets it."""

    size: int
    release: Callable[[], None]


@dataclass
class Load:
    """See the module's docstring."""

    share: Share
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        # What takes memory once is taken before any of it is measured.
        work.numbers()
        self.rng = random.Random(self.share.seed)
        self._round = 0
        self._key = 0
        self._held: dict[int, Held] = {}
        self._due: list[tuple[int, int]] = []
        self._held_bytes = 0
        self._borrowers: list[tuple[Any, int]] = []
        names = sorted(dir(self))
        self._task_operations = [getattr(self, n) for n in names if n.startswith("task_")]
        self._object_operations = [getattr(self, n) for n in names if n.startswith("object_")]
        self._keeper = self._new_actor(work.Keeper)
        while len(self._borrowers) < self.share.borrowers:
            self._borrowers.append(self._new_actor(work.Borrower))

    def _new_actor(self, kind: Any) -> tuple[Any, int]:
        node = self.rng.randrange(self.share.nodes)
        actor = kind.options(resources={f"node{node}": 1}).remote()
        self.tally.calls += 1
        return actor, get(actor.pid.remote())

    def roles(self) -> dict[int, str]:
        """The processes of the actors that this driver has now."""
        return {self._keeper[1]: "keeper"} | {pid: "borrower" for _, pid in self._borrowers}

    def facts(self) -> dict[str, Any]:
        """For whoever looks on."""
        return {**asdict(self.tally), "held": len(self._held), "held_bytes": self._held_bytes}

    def step(self) -> bool:
        """One operation; whether there is more to do."""
        share, tally = self.share, self.tally
        tasks_done = tally.tasks / share.tasks if share.tasks else 1.0
        objects_done = tally.objects / share.objects if share.objects else 1.0
        if tasks_done >= 1 and objects_done >= 1:
            return False
        self._round += 1
        while self._due and self._due[0][0] <= self._round:
            self._let_go(heapq.heappop(self._due)[1])
        kind = self._task_operations if tasks_done < objects_done else self._object_operations
        operation = self.rng.choice(kind)
        try:
            operation()
            if tally.kills < share.kills * min(tasks_done, objects_done):
                self._kill()
        except BaseException as error:
            error.add_note(f"in {operation.__name__}, operation {self._round}, {self.share}")
            raise
        return True

    def end(self) -> None:
        """Look at all that is held, and let go of it, and of the actors."""
        while self._held:
            self._let_go(next(iter(self._held)))
        self._due.clear()
        self._borrowers.clear()
        self._keeper = (None, 0)
        gc.collect()

    # --- holding and letting go ----------------------------------------------------------------------------------------

    def _hold(self, size: int, release: Callable[[], None]) -> None:
        """For a few operations, for many, or until there is no room any more."""
        self._key += 1
        self._held[self._key] = Held(size, release)
        self._held_bytes += size
        lifetime = int(self.rng.expovariate(1 / self.rng.choice((4, 40, 400))))
        heapq.heappush(self._due, (self._round + 1 + lifetime, self._key))
        while self._held_bytes > self.share.budget_bytes:
            self._let_go(self.rng.choice(list(self._held)))

    def _let_go(self, key: int) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._held_bytes -= held.size
            held.release()

    def _checked(self, fragile: bool, look: Callable[[], object]) -> None:
        """Look at something that may be lost if it is `fragile`."""
        try:
            look()
            self.tally.checked += 1
        except LOST:
            if not fragile:
                raise
            self.tally.lost += 1

    def _keep_somewhere(self, refs: list[Any], specs: list[Spec], fragile: bool) -> None:
        """Objects have been made: decide who is to have them, and for how long."""
        size = sum(length for _, length in specs) * work.WORD
        self.tally.objects += len(specs)
        self.tally.bytes += size
        where = self.rng.choice(
            (self._consume, self._consume, self._hold_here, self._nest, self._shelve, self._borrow)
        )
        where(refs, specs, size, fragile)

    def _consume(self, refs: list[Any], specs: list[Spec], size: int, fragile: bool) -> None:
        """Arguments of tasks, let go before these have run."""
        if self.rng.random() < 0.5:
            done = [work.check.remote(ref, spec) for ref, spec in zip(refs, specs, strict=True)]
        else:
            done = [work.check_boxed.remote(refs, specs)]
        refs.clear()
        self.tally.tasks += len(done)
        self._checked(fragile, lambda: get(done))

    def _hold_here(self, refs: list[Any], specs: list[Spec], size: int, fragile: bool) -> None:
        self._hold(size, lambda: self._checked(fragile, lambda: look_at(refs, specs)))

    def _nest(self, refs: list[Any], specs: list[Spec], size: int, fragile: bool) -> None:
        """Inside other objects, some of them of other processes."""
        box = shoal.put(list(refs))
        refs.clear()
        depth = 1 + self.rng.randrange(3)
        for _ in range(depth):
            if self.rng.random() < 0.3:
                self.tally.tasks += 1
                fragile = True
                try:
                    box = get(work.hand_on.remote([box]))[0]
                except LOST:
                    self.tally.lost += 1
                    return
            else:
                box = shoal.put([box])
            self.tally.small_objects += 1

        def look(box: Any = box) -> None:
            found = get(box)
            for _ in range(depth):
                found = get(found[0])
            look_at(found, specs)

        self._hold(size, lambda: self._checked(fragile, look))

    def _shelve(self, refs: list[Any], specs: list[Spec], size: int, fragile: bool) -> None:
        """In the state of an actor, and nowhere else."""
        actor, _ = self._keeper
        self._key += 1
        key = self._key
        self.tally.calls += 2
        kept = actor.keep.remote(key, refs, specs)
        del refs
        get(kept)

        def release() -> None:
            self._checked(fragile, lambda: get(actor.drop.remote(key, True)))

        self._hold(size, release)

    def _borrow(self, refs: list[Any], specs: list[Spec], size: int, fragile: bool) -> None:
        """By one that will be killed, perhaps by two; with us or alone."""
        # To a later one only: two that wait for each other would wait for ever.
        places = sorted(self.rng.sample(range(len(self._borrowers)), 2))
        first, second = (self._borrowers[place] for place in places)
        self._key += 1
        key = self._key
        self.tally.calls += 1
        self.tally.borrows += 1
        if self.rng.random() < 0.4:
            self.tally.calls += 1
            lent = first[0].pass_on.remote(second[0], key, refs, specs)
        else:
            lent = first[0].keep.remote(key, refs, specs)
        if self.rng.random() < 0.5:
            self._hold_here(refs, specs, size, fragile)
        else:
            refs.clear()
            # It has nothing of ours: all it can lose is what its owner has.
            self._hold(size, lambda: self._forget(first[0], key))
        if self.rng.random() < 0.5:
            self._checked(fragile, lambda: get(lent))

    def _forget(self, actor: Any, key: int) -> None:
        """Have a borrower drop what it has. It may have been killed, and so may whoever passed that on to it."""
        self.tally.calls += 1
        actor.drop.remote(key, False)

    # --- killing -------------------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        self.tally.kills += 1
        draw = self.rng.random()
        if draw < 0.1:
            refs = [shoal.put(work.pieces(self._spec()))]
            self.tally.tasks += 1
            self.tally.objects += 1
            with contextlib.suppress(WorkerCrashedError):
                get(work.crash.remote(refs))
            return
        actor, pid = self._borrowers.pop(self.rng.randrange(len(self._borrowers)))
        if draw < 0.6:
            os.kill(pid, signal.SIGKILL)
        elif draw < 0.9:
            shoal.kill(actor)
        # Otherwise it ends with its last handle.
        del actor
        self._borrowers.append(self._new_actor(work.Borrower))

    # --- tasks ---------------------------------------------------------------------------------------------------------

    def task_echo(self) -> None:
        count = self.rng.randrange(50, 400)
        self.tally.tasks += count
        assert get([work.echo.remote(n) for n in range(count)]) == list(range(count))

    def task_sizes(self) -> None:
        """Values of up to the limit of what travels inside messages."""
        count = self.rng.randrange(10, 40)
        self.tally.tasks += count
        values = [bytes(self.rng.randrange(20_000)) for _ in range(count)]
        assert get([work.echo.remote(value) for value in values]) == values

    def task_forgotten(self) -> None:
        """Whose results nobody wants."""
        count = self.rng.randrange(20, 100)
        self.tally.tasks += count
        for n in range(count):
            work.echo.remote(n)

    def task_chain(self) -> None:
        length = self.rng.randrange(5, 40)
        self.tally.tasks += length
        ref = work.echo.remote(1)
        for _ in range(length - 1):
            ref = work.add.remote(ref, 1)
        assert get(ref) == length

    def task_tree(self) -> None:
        depth, width = self.rng.choice(((1, 20), (2, 6), (3, 3)))
        self.tally.tasks += work.tree_size(depth, width)
        assert get(work.leaves.remote(depth, width)) == width**depth

    def task_boxes(self) -> None:
        count = self.rng.randrange(10, 100)
        self.tally.tasks += count // 10 + 1
        self.tally.small_objects += count
        refs = [shoal.put(n) for n in range(count)]
        boxes = [work.add_boxed.remote(refs[n::10]) for n in range(min(10, count))]
        del refs
        assert sum(get(boxes)) == sum(range(count))

    def task_stream(self) -> None:
        count = self.rng.randrange(5, 30)
        self.tally.tasks += 1
        stop = self.rng.choice((count, count // 2))
        taken = 0
        for ref in work.count_up.options(num_returns="streaming").remote(count):
            if taken == stop:
                break
            assert get(ref) == taken
            taken += 1
        assert taken == stop

    def task_failures(self) -> None:
        count = self.rng.randrange(1, 10)
        self.tally.tasks += count
        failures = 0
        for ref in [work.fail.remote(n) for n in range(count)]:
            try:
                get(ref)
            except TaskError:
                failures += 1
        assert failures == count

    def task_memory(self) -> None:
        """Tasks that say how much memory they need, each another amount: a shape of its own."""
        count = self.rng.randrange(1, 5)
        self.tally.tasks += count
        refs = [
            work.echo.options(memory=self.rng.randrange(1, 10**6)).remote(n) for n in range(count)
        ]
        assert get(refs) == list(range(count))

    def task_calls(self) -> None:
        """Calls of an actor, with some tasks among them."""
        actor, _ = self._keeper
        count = self.rng.randrange(20, 200)
        self.tally.calls += count
        self.tally.tasks += count // 10
        refs = [actor.echo.remote(n) for n in range(count)]
        others = [work.add.remote(ref, 1) for ref in refs[: count // 10]]
        assert get(refs) == list(range(count))
        assert get(others) == [n + 1 for n in range(count // 10)]

    # --- large objects -------------------------------------------------------------------------------------------------

    def _spec(self) -> Spec:
        """A length, more often a short one."""
        draw = self.rng.random()
        if draw < 0.01:
            size = self.rng.randrange(*HUGE)
        else:
            size = int(SMALLEST * (LARGEST / SMALLEST) ** (self.rng.random() ** 2))
        return self.rng.getrandbits(32), size // work.WORD

    def _specs(self, most: int = 4) -> list[Spec]:
        return [self._spec() for _ in range(self.rng.randint(1, most))]

    def object_put(self) -> None:
        specs = self._specs()
        self._keep_somewhere([shoal.put(work.pieces(spec)) for spec in specs], specs, False)

    def object_returned(self) -> None:
        specs = self._specs(6)
        self.tally.tasks += len(specs)
        refs = [work.make.remote(spec) for spec in specs]
        if self.rng.random() < 0.5:
            shoal.wait(refs, num_returns=len(refs), timeout=PATIENCE_S)
        self._keep_somewhere(refs, specs, False)

    def object_several(self) -> None:
        specs = [self._spec(), *self._specs()]
        self.tally.tasks += 1
        refs = work.make_all.options(num_returns=len(specs)).remote(specs)
        self._keep_somewhere(list(refs), specs, False)

    def object_streamed(self) -> None:
        specs = self._specs()
        self.tally.tasks += 1
        items = work.stream.options(num_returns="streaming").remote(specs)
        self._keep_somewhere(list(items), specs, False)

    def object_lent(self) -> None:
        """Owned by a worker that a crash may end."""
        specs = self._specs()
        self.tally.tasks += 1
        lent = work.lend.remote(specs)
        try:
            refs = get(lent)
        except LOST:
            self.tally.lost += 1
            return
        del lent
        self._keep_somewhere(refs, specs, True)

    def object_of_an_actor(self) -> None:
        specs = self._specs()
        self.tally.calls += 1
        self._keep_somewhere(get(self._keeper[0].make.remote(specs)), specs, False)

    def object_shared(self) -> None:
        """One object, and many tasks that need it."""
        spec = self._spec()
        ref = shoal.put(work.pieces(spec))
        count = self.rng.randrange(2, 6)
        self.tally.tasks += count
        get([work.check.remote(ref, spec) for _ in range(count)])
        self._keep_somewhere([ref], [spec], False)


def get(refs: Any) -> Any:
    """As `shoal.get`, but says what it waits for should that take far too long."""
    try:
        return shoal.get(refs, timeout=PATIENCE_S)
    except GetTimeoutError as error:
        error.add_note(why_it_waits(str(error)))
        raise


def look_at(refs: Iterable[Any], specs: Iterable[Spec]) -> None:
    """Raise unless these objects are whole."""
    for ref, spec in zip(refs, specs, strict=True):
        work.look(get(ref), spec)
