"""A simulated node: resources, a queue in which requests wait for them, and leases that last for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shoal.core.candidates import UNKNOWN_RUN_US
from shoal.core.policy import too_busy
from shoal.core.resources import CPU, Amounts
from shoal.messages.node import UNIT
from shoal.messages.placement import ViewRow

_US: Final = 1_000


class Request:
    """One request as a host knows it: whose it is, how long its lease will last, and whom to tell when it is granted."""

    __slots__ = ("amounts", "granted", "home", "req", "run_ns")

    def __init__(
        self,
        home: bytes,
        req: int,
        amounts: Amounts,
        run_ns: int,
        granted: Callable[[Request], None],
    ) -> None:
        self.home = home
        self.req = req
        self.amounts = amounts
        self.run_ns = run_ns
        self.granted = granted


class Host:
    """First come, first served. `changed` is called when the row is new."""

    def __init__(
        self,
        node_id: bytes,
        total: dict[str, int],
        labels: dict[str, str],
        changed: Callable[[Host], None],
    ) -> None:
        self.node_id = node_id
        self.alive = True
        self.total = total
        self.free = dict(total)
        self.labels = labels
        self.version = 1
        self.mean_run_us = 0
        self.leases: dict[tuple[bytes, int], Request] = {}
        self.queue: dict[tuple[bytes, int], Request] = {}
        self._changed = changed
        self.busy_since = 0
        self.busy_ns = 0

    def row(self) -> ViewRow:
        """The row as of now."""
        return ViewRow(
            self.node_id,
            self.version,
            self.total,
            dict(self.free),
            self.labels,
            len(self.queue),
            len(self.leases),
            self.mean_run_us,
        )

    def wait_us(self, amounts: Amounts) -> int:
        """How long a newcomer would wait."""
        if not self.queue and self._fits(amounts):
            return 0
        return (
            (len(self.queue) + 1) * (self.mean_run_us or UNKNOWN_RUN_US) // max(1, len(self.leases))
        )

    def ask(self, request: Request, expected_us: int, now: int) -> bool:
        """Take a forwarded request; False if it would wait for much longer than its home expects."""
        if too_busy(self.wait_us(request.amounts), expected_us):
            return False
        self.take(request, now)
        return True

    def take(self, request: Request, now: int) -> None:
        """Queue a request, whatever the wait."""
        self.queue[request.home, request.req] = request
        self._serve(now)

    def withdraw(self, home: bytes, req: int) -> None:
        """The request is not needed here any more."""
        if self.queue.pop((home, req), None) is not None:
            self._news()

    def give_back(self, home: bytes, req: int, now: int) -> None:
        """A lease comes back."""
        request = self.leases.pop((home, req), None)
        if request is None:
            return
        self._count_busy(now)
        for name, amount in request.amounts:
            self.free[name] += amount
        ran_us = request.run_ns // _US
        self.mean_run_us += (ran_us - self.mean_run_us) // 8 if self.mean_run_us else ran_us
        self._serve(now)

    def _fits(self, amounts: Amounts) -> bool:
        return all(amount <= self.free.get(name, 0) for name, amount in amounts)

    def _serve(self, now: int) -> None:
        while self.queue:
            key = next(iter(self.queue))
            request = self.queue[key]
            if not self._fits(request.amounts):
                break
            del self.queue[key]
            self._count_busy(now)
            for name, amount in request.amounts:
                self.free[name] -= amount
            self.leases[key] = request
            self.version += 1
            request.granted(request)
        self._news()

    def _news(self) -> None:
        self.version += 1
        self._changed(self)

    def _count_busy(self, now: int) -> None:
        used = self.total[CPU] - self.free[CPU]
        self.busy_ns += used * (now - self.busy_since) // UNIT
        self.busy_since = now

    def utilisation(self, since: int, now: int) -> float:
        """How busy the CPUs were since the count was begun (see `begin_count`)."""
        self._count_busy(now)
        return self.busy_ns * UNIT / (self.total[CPU] * (now - since))

    def begin_count(self, now: int) -> None:
        """Count from now on."""
        self._count_busy(now)
        self.busy_ns = 0

    def check(self) -> None:
        """Assert that nothing was given twice."""
        free = dict(self.total)
        for request in self.leases.values():
            for name, amount in request.amounts:
                free[name] -= amount
        assert free == self.free
        assert min(free.values()) >= 0
