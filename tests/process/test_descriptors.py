"""Drivers and workers may have many files open, whatever the shell allowed at first."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any

import pytest

import shoal
from shoal.messages.node import LeaseGranted
from shoal.wire.descriptors import MOST_WITH_USER_CODE
from tests.shortage import no_descriptors


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A shell's usual limit; the value is what may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield MOST_WITH_USER_CODE if hard == resource.RLIM_INFINITY else min(hard, MOST_WITH_USER_CODE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_session_raises_the_limit_of_the_driver_and_its_workers(few_descriptors: int) -> None:
    @shoal.remote
    def limit() -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    shoal.init(num_cpus=1)
    try:
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few_descriptors
        assert shoal.get(limit.remote(), timeout=30) == few_descriptors
    finally:
        shoal.shutdown()


@shoal.remote
class Actor:
    def answer(self) -> int:
        return 1


@shoal.remote
def refer() -> list[Any]:
    """A reference whose object this worker owns."""
    return [shoal.put(7)]


@shoal.remote
def pass_on() -> list[Any]:
    return [refer.remote()]


@shoal.remote(num_cpus=0.5)
def half() -> int:
    return 2


def test_who_has_no_descriptors_goes_on_when_some_are_closed() -> None:
    shoal.init(num_cpus=2)
    try:
        (passed_on,) = shoal.get(pass_on.remote(), timeout=30)
        process = shoal.runtime.current_process.require()
        granted: list[LeaseGranted] = []
        take = process.node_handlers[LeaseGranted]

        def on_granted(message: LeaseGranted) -> None:
            granted.append(message)
            take(message)

        process.node_handlers[LeaseGranted] = on_granted
        with no_descriptors():
            call = Actor.remote().answer.remote()
            tasks = [half.remote() for _ in range(4)]
            # Another worker owns what is in there: it must hear that this process uses it, and say what it is.
            (borrowed,) = shoal.get(passed_on, timeout=30)
            waiting = [call, *tasks, borrowed]
            # Some may be served by workers that this process has a connection to.
            assert shoal.wait(waiting, num_returns=len(waiting), timeout=1)[1]
        assert shoal.get(waiting, timeout=30) == [1, 2, 2, 2, 2, 7]
        # Workers that could not be spoken with were not thrown away for others.
        assert len(granted) <= 4
    finally:
        shoal.shutdown()
