"""The processes that are connected to this node: drivers and workers, by number and by address, and who watches whom.

A client is numbered when it registers, and the number is never used for another: state machines name owners by it, so
that what concerns a client that is gone finds nobody. Guarantees that a watcher hears of the end of a process exactly once
for each `Watch`, also if it watches too late. Who watches has met whom it watches, which is noted in `circles`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from shoal.core.circles import Circles
from shoal.messages.node import Job, PeerGone
from shoal.wire.aio import PeerConnection

_REMEMBERED: Final = 10_000


class Client:
    """One registered process. `worker_id` is empty for a driver."""

    __slots__ = (
        "address",
        "connection",
        "job",
        "log_to_driver",
        "number",
        "pid",
        "watches",
        "worker_id",
    )

    def __init__(
        self,
        number: int,
        connection: PeerConnection,
        address: str,
        pid: int,
        job: Job,
        worker_id: bytes = b"",
        log_to_driver: bool = False,
    ) -> None:
        self.number = number
        self.connection = connection
        self.address = address
        self.pid = pid
        self.job = job
        self.worker_id = worker_id
        self.log_to_driver = log_to_driver
        self.watches: set[str] = set()

    def send(self, message: Any) -> None:
        """Send it a message, with the others of this turn."""
        self.connection.send(message)

    def __str__(self) -> str:
        kind = "worker" if self.worker_id else "driver"
        return f"{kind} (pid {self.pid})"


class Clients:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._clients: dict[int, Client] = {}
        self._watchers: dict[str, dict[int, None]] = {}
        self.circles = Circles()
        # Of processes of this node: those that are here, and those of which the end is remembered.
        self._jobs: dict[str, bytes] = {}
        # How processes ended that may still be asked about; the oldest are forgotten.
        self._gone: dict[str, PeerGone] = {}

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    def get(self, number: Any) -> Client | None:
        """The client of a number, unless it is gone."""
        return self._clients.get(number)

    def drivers(self) -> list[Client]:
        """All drivers."""
        return [client for client in self._clients.values() if not client.worker_id]

    def driver_of(self, job_id: bytes) -> Client | None:
        """The driver of a job."""
        return next((d for d in self.drivers() if d.job.job_id == job_id), None)

    def add(
        self,
        connection: PeerConnection,
        address: str,
        pid: int,
        job: Job,
        worker_id: bytes = b"",
        log_to_driver: bool = False,
    ) -> Client:
        """A process has registered."""
        number = next(self._numbers)
        client = Client(number, connection, address, pid, job, worker_id, log_to_driver)
        self._clients[number] = client
        self._jobs[address] = job.job_id
        self.circles.enter(job.job_id)
        return client

    def remove(self, client: Client) -> None:
        """Its connection is gone. Whether its process is, `gone` tells."""
        if self._clients.pop(client.number, None) is not None:
            for address in client.watches:
                watchers = self._watchers.get(address)
                if watchers is not None:
                    watchers.pop(client.number, None)
                    if not watchers:
                        del self._watchers[address]

    def watch(self, client: Client, address: str, *, alive: bool) -> None:
        """Tell `client` when the process at `address` ends; `alive` says that it exists now."""
        self.circles.met(client.job.job_id, self._jobs.get(address))
        gone = self._gone.get(address)
        if gone is not None:
            client.send(gone)
        elif not alive:
            client.send(
                PeerGone(address, "is not known to this node: it ended long ago, or never was")
            )
        else:
            self._watchers.setdefault(address, {})[client.number] = None
            client.watches.add(address)

    def watch_from_elsewhere(self, address: str) -> None:
        """A process of another node watches the one at `address`."""
        job_id = self._jobs.get(address)
        if job_id is not None:
            self.circles.met(job_id, None)

    def end_of(self, address: str) -> PeerGone | None:
        """How a process has ended, if it has and that is remembered."""
        return self._gone.get(address)

    def cause_of(self, address: str) -> str:
        """How a process has ended."""
        gone = self._gone.get(address)
        return "has ended" if gone is None else gone.cause

    def gone(self, notice: PeerGone) -> None:
        """A process has ended."""
        address = notice.address
        if address in self._gone:
            return
        self._gone[address] = notice
        if len(self._gone) > _REMEMBERED:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            self._jobs.pop(oldest, None)
        for number in self._watchers.pop(address, ()):
            watcher = self._clients.get(number)
            if watcher is not None:
                watcher.watches.discard(address)
                watcher.send(notice)
