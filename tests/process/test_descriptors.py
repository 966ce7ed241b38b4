"""Drivers and workers may have many files open, whatever the shell allowed at first."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

import shoal
from shoal.wire.descriptors import MOST_WITH_USER_CODE


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
