"""What tests of the reactor share: descriptors that fire, threads that wait, and patience.

Everything waits on conditions. The patience is long, since a machine under load owes us nothing, and never part of what is
asserted: a test that hangs has found a thread that sleeps while it should not.
"""

from __future__ import annotations

import os
import select
import threading
import time
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from shoal.lock import make_lock
from shoal.wire.reactor import Reactor, Waiter

PATIENCE_S = 20


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that other threads do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def waited_in_time(reactor: Reactor, waiter: Waiter) -> bool:
    """Wait for something that is sure to happen. False also if it had happened and the thread slept on."""
    deadline = time.monotonic() + PATIENCE_S
    return reactor.wait(waiter, PATIENCE_S) and time.monotonic() < deadline


class Source:
    """A descriptor that a test makes readable; its handler finishes a waiter, as a message with a result would."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiter = Waiter()
        self.handled_by: list[int] = []
        self.on_event: Callable[[], None] | None = None
        reactor.register(self.fd, self._handle)

    def fire(self) -> None:
        os.eventfd_write(self.fd, 1)

    def _handle(self, mask: int) -> None:
        assert mask == select.EPOLLIN
        assert self.reactor._leader == get_ident()
        os.eventfd_read(self.fd)
        self.handled_by.append(get_ident())
        if self.on_event is not None:
            self.on_event()
        with self.reactor.lock:
            self.waiter.finish()

    def close(self) -> None:
        self.reactor.unregister(self.fd)
        os.close(self.fd)


class Outlet:
    """Stands in for a connection that has something to send."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.flushed_by: list[int] = []

    def touch(self) -> None:
        with self.reactor.lock:
            self.reactor.dirty.append(self)  # type: ignore[arg-type]  # it flushes, and nothing more is asked of it

    def flush(self) -> None:
        assert self.reactor.lock._is_owned()
        self.flushed_by.append(get_ident())


class Worker(threading.Thread):
    """A thread that waits for something, and how that ended."""

    def __init__(self, reactor: Reactor, waiter: Waiter, timeout_s: float | None = None) -> None:
        super().__init__(daemon=True)
        self.reactor = reactor
        self.waiter = waiter
        self.timeout_s = timeout_s
        self.result: bool | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.reactor.wait(self.waiter, self.timeout_s)
        except BaseException as error:  # noqa: BLE001 - it is what the test asks for
            self.result = error

    def ended(self) -> bool | BaseException | None:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "it still waits"
        return self.result

    def leads(self) -> bool:
        return self.reactor._leader == self.ident

    def follows(self) -> bool:
        return self.waiter in self.reactor._followers


class Bench:
    def __init__(self, watch_us: int = 2_000) -> None:
        self.reactor = Reactor(make_lock(), watch_us)
        self.sources: list[Source] = []

    def source(self) -> Source:
        source = Source(self.reactor)
        self.sources.append(source)
        return source

    def leader(self) -> tuple[Source, Worker]:
        """A thread that leads, waiting for a source."""
        source = self.source()
        worker = Worker(self.reactor, source.waiter)
        until(worker.leads)
        return source, worker

    def follower(self, timeout_s: float | None = None) -> tuple[Source, Worker]:
        """A thread that follows, while another one leads."""
        source = self.source()
        worker = Worker(self.reactor, source.waiter, timeout_s)
        until(worker.follows)
        return source, worker

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self.reactor.close()


class Interruption:
    """A signal that one thread is meant to notice."""

    def __init__(self, reactor: Reactor) -> None:
        self.wanted = 0
        reactor.interrupted = self.check

    def check(self) -> None:
        if self.wanted == get_ident():
            self.wanted = 0
            raise KeyboardInterrupt
