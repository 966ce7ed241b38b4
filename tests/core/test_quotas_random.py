"""Quotas and spilling in random worlds: never more than there is, in order, and nobody waits while room could be made.

The world is dumb: processes with so many bytes that are idle, could be spilled, or are looked at; each does what it is told as soon as it
gets its turn, unless it is stopped or dead; a disk of a certain size.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from shoal.core.quotas import Granted, StoreQuotas, Wanted
from shoal.core.spilling import SpillOrder, SpillTerms

MS = 1_000_000
SECOND = 1_000 * MS
CAPACITY = 1_000
TERMS = SpillTerms(
    batch=125, order_ns=10 * SECOND, fallback_ns=SECOND, retry_ns=10 * SECOND, place="/spill"
)
ASK_NS = 50 * MS
TIMEOUT_NS = 20 * SECOND
SEEDS = 150


@dataclass
class Process:
    """Bytes of its quota by what can be done with them, and the messages that it has not read."""

    idle: int = 0
    spillable: int = 0
    viewed: int = 0
    stopped: bool = False
    dead: bool = False
    mail: deque[Wanted | SpillOrder] = field(default_factory=deque)

    @property
    def held(self) -> int:
        return self.idle + self.spillable + self.viewed


class World:
    """Processes, a disk, and the machine between them."""

    def __init__(self, seed: int, *, spill: bool = True) -> None:
        self.rng = random.Random(seed)
        self.machine = StoreQuotas(CAPACITY, 50, TIMEOUT_NS, TERMS if spill else None, ASK_NS)
        self.spill = spill
        self.now = 0
        self.processes: dict[str, Process] = {}
        self.disk_free = 1 << 40
        self.reqs = 0
        # What is asked for and not answered, in order; of more than there is by itself.
        self.lines: dict[bool, dict[int, tuple[str, int, int]]] = {False: {}, True: {}}
        self.answers: dict[int, Granted] = {}
        self.disk_was_full = False

    # --- what happens --------------------------------------------------------------------------------------------

    def start(self) -> str:
        name = f"p{len(self.processes)}"
        self.processes[name] = Process()
        return name

    def ask(self, name: str, needed: int) -> int:
        self.reqs += 1
        self.lines[needed > CAPACITY][self.reqs] = (name, needed, self.now)
        self.machine.on_request(name, f"process {name}", self.reqs, needed, self.now)
        self.carry_out()
        return self.reqs

    def read_one(self, name: str) -> bool:
        """A process reads a message, if it can."""
        process = self.processes[name]
        if process.stopped or process.dead or not process.mail:
            return False
        message = process.mail.popleft()
        if isinstance(message, Wanted):
            # What it asked for it counts on; idle memory of dead objects is another thing, and it has both.
            given = min(process.idle if not message.itself else process.idle // 2, message.wanted)
            process.idle -= given
            self.machine.on_return(name, given, self.now, asked=True)
        else:
            freed, error = self.write(process, message.wanted)
            self.machine.on_spilled(name, freed, error, self.now)
        self.carry_out()
        return True

    def write(self, process: Process, wanted: int) -> tuple[int, str]:
        amount = min(wanted, process.spillable, self.disk_free)
        error = "it is full" if amount < min(wanted, process.spillable) else ""
        self.disk_was_full |= bool(error)
        process.spillable -= amount
        self.disk_free -= amount
        return amount, error

    def die(self, name: str) -> None:
        process = self.processes[name]
        process.dead = True
        process.mail.clear()
        process.idle = 0
        for line in self.lines.values():
            for req in [r for r, (holder, _, _) in line.items() if holder == name]:
                del line[req]
        self.machine.on_holder_gone(name, self.now)
        self.machine.on_swept(name, process.held, self.now)
        self.carry_out()

    def tick(self, now: int) -> None:
        self.now = now
        self.machine.on_tick(now)
        self.carry_out()

    def carry_out(self) -> None:
        machine = self.machine
        while machine.outbox:
            machine.check()
            effects = machine.outbox[:]
            machine.outbox.clear()
            for effect in effects:
                process = self.processes[str(effect.holder)]
                if isinstance(effect, Granted):
                    self.on_granted(effect, process)
                elif process.dead:
                    assert isinstance(effect, SpillOrder)
                    freed, error = self.write(process, effect.wanted)
                    machine.on_swept(effect.holder, process.held, self.now)
                    machine.on_spilled(effect.holder, freed, error, self.now)
                else:
                    same = [m for m in process.mail if type(m) is type(effect)]
                    assert not same, "a holder gets one message of a kind at a time"
                    process.mail.append(effect)
        machine.check()
        for name, process in self.processes.items():
            assert machine.held(name) == process.held
        assert sum(process.held for process in self.processes.values()) <= CAPACITY
        if any(self.lines.values()):
            deadline = machine.next_deadline()
            assert deadline is not None, "somebody waits, and nobody will look"
        else:
            assert machine.next_deadline() is None

    def on_granted(self, effect: Granted, process: Process) -> None:
        (line,) = [line for line in self.lines.values() if effect.req in line]
        name, needed, since = line[effect.req]
        assert name == effect.holder
        assert effect.req == next(iter(line)), "who came first is served first"
        del line[effect.req]
        self.answers[effect.req] = effect
        kinds = [bool(effect.granted), effect.on_disk, bool(effect.explanation)]
        assert kinds.count(True) == 1
        if effect.granted:
            assert effect.granted >= needed
            process.spillable += needed
            process.idle += effect.granted - needed
        elif effect.on_disk:
            assert self.spill
            assert needed > CAPACITY or self.now >= since + TERMS.fallback_ns
        elif self.spill:
            assert self.disk_was_full
            assert "it is full" in effect.explanation
            assert self.now >= since + TIMEOUT_NS
        else:
            assert needed > CAPACITY or self.now >= since + TIMEOUT_NS

    # --- chance --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        rng = self.rng
        alive = [name for name, process in self.processes.items() if not process.dead]
        if len(alive) < 2:
            self.start()
            return
        name = rng.choice(alive)
        process = self.processes[name]
        match rng.choice(
            ["ask"] * 4 + ["read"] * 8 + ["look", "drop", "stop", "die", "disk", "time", "time"]
        ):
            case "ask":
                self.ask(name, rng.choice([1, 20, 90, 400, CAPACITY, CAPACITY + 1]))
            case "read":
                self.read_one(name)
            case "look":
                # Views come and go.
                total = process.spillable + process.viewed
                process.viewed = rng.choice([0, total // 2, total])
                process.spillable = total - process.viewed
            case "drop":
                dropped = rng.randint(0, process.spillable)
                process.spillable -= dropped
                process.idle += dropped
            case "stop":
                process.stopped = not process.stopped
            case "die":
                if len(self.processes) < 8:
                    self.die(name)
            case "disk":
                self.disk_free = rng.choice([0, 100, 1 << 40])
            case "time":
                deadline = self.machine.next_deadline()
                later = self.now + rng.randint(0, SECOND)
                self.tick(later if deadline is None else min(later, max(deadline, self.now)))

    def settle(self, until: int) -> None:
        """Everybody who is not stopped does as told, and time passes as far as somebody waits for it."""
        for _ in range(10_000):
            while sum(self.read_one(name) for name in self.processes):
                pass
            deadline = self.machine.next_deadline()
            if deadline is None or deadline > until:
                return
            self.tick(max(deadline, self.now))
            again = self.machine.next_deadline()
            assert again is None or again > self.now, "it would be looked at again at once"
        raise AssertionError("it does not settle")


@pytest.mark.parametrize("seed", range(2 * SEEDS))
def test_a_random_history(seed: int) -> None:
    walk(seed)


def walk(seed: int) -> None:
    """Live through one world; with even seeds it spills."""
    spill = seed % 2 == 0
    world = World(seed, spill=spill)
    for _ in range(200):
        world.step()
    # Whatever was, everybody gets an answer by the time that was promised.
    world.settle(world.now + TIMEOUT_NS)
    assert not any(world.lines.values())

    # In a world that is left alone, who asks gets memory if there is any to be had, and else a place on disk.
    # (Orders that a stopped process has not read are late by then.)
    world.tick(world.now + 11 * SECOND)
    world.disk_free = world.rng.choice([0, 1 << 40])
    asker = world.start()
    needed = world.rng.randint(1, CAPACITY)
    helpful = [p for p in world.processes.values() if p.dead or not p.stopped]
    idle = sum(p.idle for p in helpful if not p.dead)
    if spill and world.disk_free:
        idle += sum(p.spillable for p in helpful)
    available = world.machine.free + idle
    req = world.ask(asker, needed)
    world.settle(world.now + TIMEOUT_NS)
    answer = world.answers[req]
    if available >= needed:
        assert answer.granted >= needed
    elif spill and world.disk_free:
        assert answer.on_disk
    elif spill and not any(p.spillable for p in helpful):
        # Nobody has found out that the disk is full: whoever makes the object will.
        assert answer.on_disk
    else:
        assert answer.explanation


def test_worlds_differ() -> None:
    """The test above sees all kinds of answers."""
    seen = {"granted": 0, "on disk": 0, "explained": 0}
    for seed in range(20):
        world = World(seed)
        for _ in range(200):
            world.step()
        world.settle(world.now + TIMEOUT_NS)
        for answer in world.answers.values():
            kind = "granted" if answer.granted else "on disk" if answer.on_disk else "explained"
            seen[kind] += 1
    assert min(seen.values()) > 20, seen
