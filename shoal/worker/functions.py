"""Remote functions in a worker: defined once per connection, loaded once per process.

A function is loaded when it is first called, and kept by its id: state that it keeps in its module or closure lasts from call to
call, as in any process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from shoal.messages.node import UNIT
from shoal.messages.peer import Bind, Define
from shoal.messages.placement import InBundle
from shoal.messages.values import Inline, Stored

if TYPE_CHECKING:
    from shoal.core.tasks import Function
    from shoal.messages.node import Shape
    from shoal.runtime.process import Process

_MAX_LOADED: Final = 10_000
"""Functions kept loaded; beyond, the oldest are loaded again when they are called."""


class Definition:
    """A function that the other side of a connection has defined. `calls` counts for both of its forms, if it has two: one for tasks
    that may be run again, and one for those that may not."""

    __slots__ = ("call", "calls", "code", "function_id", "max_calls", "name", "retriable")

    def __init__(self, message: Define, others: Iterable[Definition] = ()) -> None:
        self.function_id = message.function_id
        self.name = message.name
        self.code: Inline | Stored = message.code
        self.max_calls = message.max_calls
        self.retriable = message.retriable
        same = (other.calls for other in others if other.function_id == message.function_id)
        self.calls: list[int] = next(same, [0])
        self.call: Callable[..., Any] | None = None


class Functions:
    """See the module's docstring. Used by the main thread only, and by the threads of an actor."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._loaded: dict[bytes, Callable[..., Any]] = {}

    def load(self, definition: Definition) -> Callable[..., Any]:
        """The function itself.

        Raises:
            DeserializationError: its code cannot be loaded here.
        """
        call = definition.call
        if call is None:
            call = definition.call = self.load_code(
                definition.function_id, definition.code, definition.name
            )
        return call

    def load_own(self, function: Function) -> Callable[..., Any]:
        """A function that this process owns, as any other process would load it."""
        return self.load_code(function.function_id, function.code, function.name)

    def load_code(self, function_id: bytes, code: Any, name: str) -> Callable[..., Any]:
        """Load pickled code, once per id."""
        call = self._loaded.get(function_id)
        if call is None:
            call = self._process.values.unpack(code, f"the code of {name}")
            if len(self._loaded) >= _MAX_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[function_id] = call
        return call

    def bind(self, message: Bind) -> None:
        """Set the environment that a lease's resources imply."""
        set_resources(self._process, message.shape, message.gpu_ids)


def _capturing(before: InBundle | None, shape: Shape) -> InBundle | None:
    """Where what is submitted from a shape goes that does not say where; `before`, if that is the same as it was."""
    strategy = shape.strategy
    if not isinstance(strategy, InBundle) or not strategy.captures:
        return None
    captured = InBundle(strategy.group_id, captures=True)
    return before if before == captured else captured


def set_resources(process: Process, shape: Shape, gpu_ids: list[str]) -> None:
    """Tell libraries, through the environment, which GPUs and how many threads they may use."""
    process.assigned_shape = shape
    process.env = shape.env
    process.captured = _capturing(process.captured, shape)
    process.gpu_ids = gpu_ids
    resources = dict(shape.resources)
    if gpu_ids or resources.get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
    if "SHOAL_USER_OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(resources.get("CPU", 0) // UNIT, 1))
