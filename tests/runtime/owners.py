"""An owner of tasks without a process around it: the node and the workers are lists of what they were told."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from shoal.config import Config
from shoal.core.lanes import Lane
from shoal.core.references import ObjectTable
from shoal.core.tasks import Function, Task
from shoal.messages.node import UNIT, KillProcess, Shape
from shoal.runtime.owner import Owner
from shoal.runtime.submitting import Submissions


class Sent(list[Any]):
    """A connection: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.out = self
        self.lane: Lane | None = None
        self.peer = SimpleNamespace(defined=set())

    def send(self, message: Any) -> None:
        self.append(message)

    send_locked = send

    def touch(self) -> None:
        """It is always at hand."""

    flush = touch


class Bench:
    """An owner, the node as a list of what it was told, and a lane with short tasks on it."""

    def __init__(self) -> None:
        self.node = Sent()
        self.objects = ObjectTable("owner")
        self.timers: list[Callable[[], None]] = []
        self.warnings: list[str] = []
        process: Any = SimpleNamespace(
            config=Config(),
            objects=self.objects,
            node=self.node,
            reactor=SimpleNamespace(call_later=lambda _delay_s, timer: self.timers.append(timer)),
            lock=allocate_lock(),
            settle=self.settle,
            warn=self.warnings.append,
            address="local/d-00000001",
            session_dir="/run/session",
            complete=self.complete,
        )
        self.owner = Owner(process)
        process.submissions = Submissions(process, self.owner)
        self.queue = self.owner.tasks.scheduling_class(Shape((("CPU", UNIT),)))
        self.function = Function(0, b"f", "f", b"")
        self.function.average_us = 1

    def complete(self, entry: Any, value: Any, refs: Any, registered: Any) -> None:
        self.objects.complete(entry, value, refs, registered)

    def settle(self) -> None:
        self.owner.settle()
        self.owner.tasks.check()

    def submit(self, *names: bytes) -> list[Task]:
        tasks = []
        for name in names:
            entry = self.objects.own(name)
            task = entry.task = Task(name, self.function, self.queue, b"", (entry,), 3)
            self.owner.tasks.submit(task)
            tasks.append(task)
        return tasks

    def grant(self) -> Lane:
        req = next(iter(self.queue.requests))
        lane = Lane(self.queue, req, f"worker{req}", req, self.owner._push)
        lane.connection = Sent()
        lane.connection.lane = lane
        self.owner.tasks.granted(req, self.queue, lane, 0.0)
        return lane

    def hear(self, lane: Lane, *messages: Any) -> None:
        for message in messages:
            self.owner.handlers[type(message)](lane.connection, message)
        self.settle()

    def force(self, task: Task) -> None:
        self.owner.cancel(task, force=True, recursive=True)

    def killed(self) -> list[str]:
        return [message.address for message in self.node if isinstance(message, KillProcess)]
