"""Remote functions: `@remote` on a function, `.remote()`, `.options()`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from shoal.api.dag import FunctionNode
from shoal.api.options import STREAMING, TaskOptions, task_options
from shoal.api.signatures import Signature
from shoal.core.tasks import Function, Task
from shoal.messages.values import Stored
from shoal.runtime import current_process
from shoal.runtime.reentry import is_reentered
from shoal.runtime.refs import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.runtime.values import wire_args
from shoal.serial.values import serialize_function

if TYPE_CHECKING:
    from shoal.core.lanes import SchedulingClass
    from shoal.messages.placement import InBundle
    from shoal.runtime.process import Process

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function whose calls are tasks. Made by `shoal.remote`."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._checked: TaskOptions = task_options(options, self._name)
        returns = self._checked.num_returns
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if returns == STREAMING and not generates:
            raise ValueError(
                f'{self._name}() has num_returns="streaming" but is not a generator function; use yield in it'
            )
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                f"{self._name}() is an async function, which cannot be a task; make it a method of an actor, or call "
                "asyncio.run() in an ordinary function"
            )
        self._returns = (STREAMING if generates else 1) if returns is None else returns
        # Made at the first call: while a function that calls itself is unpickled, its defaults are not there yet.
        self._signature: Signature | None = None
        self._process: Process | None = None
        self._record: Function
        self._queue: SchedulingClass
        self._captured: InBundle | None = None
        self._retries = 0
        self._base: RemoteFunction[P, R] = self
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{self._name}() is a remote function: call {self._name}.remote(…), which returns a reference at once, and "
            f"shoal.get() for its value; {self._name}._function is the function itself"
        )

    # --- calling -------------------------------------------------------------------------------------------------

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task; returns at once.

        Returns:
            A reference to the result; for `num_returns` of n > 1 a list of n references, for 0 None, for a generator
            an `ObjectRefGenerator`.

        Raises:
            TypeError: the function does not take these arguments.
            UnserializableError: an argument cannot be sent.
        """
        process = current_process.process
        if process is not self._process or process is None:
            process = self._bind()
        elif process.captured is not self._captured:
            self._bind_queue(process)
        signature = self._signature
        if signature is None:
            signature = self._signature = Signature.of(self._function, self._name)
        signature.check(args, kwargs)
        checked = self._checked
        if self._returns == 1 and not checked.name and not checked.retry_exceptions:
            return process.submissions.submit(
                self._record, self._queue, args, kwargs, self._retries
            )
        task = Task(process.ids.task_id(), self._record, self._queue, b"", (), self._retries)
        task.error_retry = checked.retry_exceptions
        task.name = checked.name
        task.window = checked.window
        return launch(process, task, args, kwargs, self._returns, self._function)

    def bind(self, *args: Any, **kwargs: Any) -> FunctionNode:
        """A call for later: a node of a graph, which may have other nodes as arguments (see `shoal.dag`)."""
        return FunctionNode(self._name, lambda _results: self.remote, args, kwargs)

    def _bind(self) -> Process:
        """Make this function known to the runtime that is current now."""
        process = current_process.require()
        retries = self._checked.max_retries
        self._retries = process.config.max_retries if retries is None else retries
        self._bind_queue(process)
        base = self._base
        if base is self or self._checked.max_calls != base._checked.max_calls:
            self._record = register(process, self._function, self._name, self._checked.max_calls)
        else:
            if base._process is not process:
                base._bind()
            self._record = process.functions[base._record.function_id]
        if not self._retries:
            self._record = _not_retriable(process, self._record)
        self._process = process
        return process

    def _bind_queue(self, process: Process) -> None:
        """Find the queue for the tasks, in the placement group that captures them, if one does now."""
        checked = self._checked
        shape = process.shape_here(
            checked.shape, capturable=checked.capturable, inherits=checked.inherits
        )
        self._queue = process.owner.tasks.scheduling_class(shape)
        self._captured = process.captured

    # --- variants ------------------------------------------------------------------------------------------------

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """The same function with other options.

        Raises:
            ValueError: an option that does not exist or cannot be changed here.
        """
        if "max_calls" in options:
            raise ValueError(
                "max_calls cannot be set by .options(): it belongs to the function; use @remote(max_calls=…)"
            )
        variant = RemoteFunction(self._function, {**self._options, **options})
        variant._base = self._base
        return variant

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """`options(**options).remote(*args, **kwargs)`, as libraries call it."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)


def register(process: Process, code: Any, name: str, max_calls: int = 0) -> Function:
    """Pickle a function or class for this process's tasks; the same code gives the same record."""
    serialized = serialize_function(code)
    digest = hashlib.blake2b(serialized.data, digest_size=16)
    for buffer in serialized.buffers:
        digest.update(buffer)
    digest.update(max_calls.to_bytes(8, "little"))
    function_id = digest.digest()
    known = process.functions.get(function_id)
    if known is not None:
        return known
    size = serialized.size_bytes
    if size > process.config.large_function_bytes:
        warnings.warn(
            f"{name} is {size / 1e6:.0f} MB when pickled, because of what it captures; every worker loads all of it. "
            "Put large values into the object store (shoal.put) and pass the reference as an argument",
            UserWarning,
            stacklevel=4,
        )
    entries = process.values.entries_in(serialized) if serialized.refs else []
    code_value = wire_args(process.values.pack(serialized, entries))
    with process.lock:
        known = process.functions.get(function_id)
        if known is not None:
            # Another thread was quicker. Two records would share an index with the next function.
            if type(code_value) is Stored:
                process.store.free(code_value.location)
            return known
        for entry in entries:
            # As long as the function may be called, what it captured must be there.
            process.objects.hold(entry)
        function = Function(len(process.functions), function_id, name, code_value, max_calls)
        function.target = code
        function.holds = entries
        process.functions[function_id] = function
    return function


def _not_retriable(process: Process, function: Function) -> Function:
    """The record of the same function for tasks that may not be run again. In workers the two share the loaded code."""
    key = function.function_id + b"once"
    with process.lock:
        known = process.functions.get(key)
        if known is None:
            known = Function(
                len(process.functions),
                function.function_id,
                function.name,
                function.code,
                function.max_calls,
                retriable=False,
            )
            known.target = function.target
            process.functions[key] = known
    return known


def launch(
    process: Process,
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    returns: int,
    target: Any,
) -> Any:
    """Submit a task (or call) with any number of results; see `RemoteFunction.remote` for what comes back."""
    packed, deps, holds, _kept = process.submissions.pack_args(args, kwargs, target)
    task.args = packed
    task.return_count = returns
    extra = task.holds
    if extra:
        holds = [*extra, *holds] if holds else extra
    task.holds = None
    reentered = is_reentered(process)
    with process.lock:
        task.returns = process.submissions.make_returns(
            task.task_id, 1 if returns == STREAMING else returns
        )
        for entry in task.returns:
            entry.task = task
        if returns == STREAMING:
            task.stream = process.make_stream(task)
        if reentered:
            process.submissions.start_later(task, deps, holds)
        else:
            process.submissions.start(task, deps, holds)
    refs: list[ObjectRef[Any]] = [ObjectRef._of(entry, process.drop) for entry in task.returns]
    generator: ObjectRefGenerator[Any] | None = (
        ObjectRefGenerator(process, task, task.stream, refs[0]) if returns == STREAMING else None
    )
    if not reentered:
        process.submissions.after_submit()
    if generator is not None:
        return generator
    if returns == 0:
        return None
    return refs[0] if returns == 1 else refs


@overload
def decorate(target: type, options: dict[str, Any]) -> Any: ...
@overload
def decorate(target: Callable[P, R], options: dict[str, Any]) -> RemoteFunction[P, R]: ...
def decorate(target: Any, options: dict[str, Any]) -> Any:
    """Make a function or class remote."""
    from shoal.api.actors import ActorClass

    if inspect.isclass(target):
        return ActorClass(target, options)
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is remote already")
    if not callable(target):
        raise TypeError(f"remote takes a function or a class, not {target!r}")
    return RemoteFunction(target, options)


def remote(*args: Any, **options: Any) -> Any:
    """Make a function a remote function, or a class an actor class.

    Use it as `@remote`, as `@remote(num_cpus=2, …)`, or as `remote(f)`.

    Raises:
        TypeError: the target is neither a function nor a class, or options were passed by position.
        ValueError: an option that does not exist, or a value that it cannot have.
    """
    if len(args) == 1 and not options:
        return decorate(args[0], {})
    if args or not options:
        raise TypeError(
            "use @remote without parentheses, or with options by name, such as @remote(num_cpus=2)"
        )
    return lambda target: decorate(target, options)
