"""Reactors and connections for a test, closed at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.wire.reactors import Bench
from tests.wire.wires import Wire


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A reactor whose service thread has not been started: nobody else interferes."""
    with contextlib.closing(Bench()) as bench:
        yield bench


@pytest.fixture
def served() -> Iterator[Bench]:
    """A reactor with its service thread."""
    with contextlib.closing(Bench()) as bench:
        bench.reactor.start()
        yield bench


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A reactor for connections, which only the test's own thread leads."""
    with contextlib.closing(Wire()) as wire:
        yield wire
