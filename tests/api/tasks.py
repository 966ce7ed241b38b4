"""The tasks that tests of objects and references use. In a module of its own: workers import nothing else for them."""

from __future__ import annotations

from typing import Any

import shoal
from tests.api.gates import Gate


@shoal.remote
def identity(value: Any) -> Any:
    return value


@shoal.remote
def wait_for(gate: Gate, value: Any = None) -> Any:
    """Returns the value when the gate is open."""
    gate.wait()
    return value
