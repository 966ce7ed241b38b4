"""Gates and traces of one test. All gates open at its end: no task of a failed test stays behind in a shared cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.gates import Gate, Trace


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    """Makes gates by name."""
    made: list[Gate] = []

    def make(name: str) -> Gate:
        made.append(Gate(tmp_path / f"{name}.gate"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def traces(tmp_path: Path) -> Callable[[str], Trace]:
    """Makes traces by name."""
    return lambda name: Trace(tmp_path / f"{name}.trace")
