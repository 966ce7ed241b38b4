"""One call of the user's code: its arguments, its result, its failure.

`perform` runs it and gives the message that answers it. User code can raise anything, also `SystemExit` and
`KeyboardInterrupt`; nothing of that leaves here but as a message, except the two that end the process by the user's
wish (`ActorExit`, `SystemExit` in an actor).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shoal.errors import InternalError, ShoalError, TaskCancelledError, TaskError
from shoal.messages.peer import Done, Failure, Results
from shoal.messages.transfer import Why
from shoal.messages.values import Dep, Inline, Stored, Value
from shoal.runtime.context import current
from shoal.runtime.remote import Wanted
from shoal.runtime.values import wire_value
from shoal.serial.exceptions import dump_exception
from shoal.serial.layout import read_layout
from shoal.serial.values import deserialize_args, serialize

if TYPE_CHECKING:
    from shoal.runtime.context import TaskContext
    from shoal.runtime.process import Process
    from shoal.runtime.remote import RemoteObjects

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class ActorExit(BaseException):
    """Raised by `exit_actor`: the actor ends after this call."""


class Job(NamedTuple):
    """A call to be made: everything but the function itself."""

    task_id: bytes
    name: str
    args: bytes | Inline | Stored
    deps: list[Dep]
    returns: int
    attempt: int
    actor: str | None = None
    actor_id: bytes | None = None


class Outcome(NamedTuple):
    """What became of a call: the answer, the handles inside its results, and the run time.

    The handles keep their objects alive until the answer has been given: the user's code may have dropped its own
    already, and whoever leads the reactor may count that at any moment.
    """

    message: Done | Results | Failure
    lent: list[Any]
    start_ns: int
    end_ns: int


def arguments(process: Process, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with references that were passed at top level replaced by their values."""
    remote = process.store.remote
    if remote is not None:
        held = _bring(remote, job)
        try:
            return _unpack(process, job)
        finally:
            # Now the arguments themselves keep what they are views of.
            del held
    return _unpack(process, job)


async def arguments_on_loop(process: Process, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same for a coroutine: the actor's other calls go on while objects of other nodes come."""
    remote = process.store.remote
    wanted = [] if remote is None else _wanted(remote, job)
    if remote is None or not wanted:
        return _unpack(process, job)
    held = await remote.get_on_loop(wanted, Why.ARGUMENTS)
    try:
        return _unpack(process, job)
    finally:
        del held


def _bring(remote: RemoteObjects, job: Job) -> list[memoryview]:
    """Bring the arguments here that are at other nodes, all at once."""
    wanted = _wanted(remote, job)
    return remote.get(wanted, Why.ARGUMENTS) if wanted else []


def _wanted(remote: RemoteObjects, job: Job) -> list[Wanted]:
    wanted = [
        Wanted(dep.value, f"argument {dep.key!r} of {job.name}()")
        for dep in job.deps
        if isinstance(dep.value, Stored) and remote.is_remote(dep.value)
    ]
    if isinstance(job.args, Stored) and remote.is_remote(job.args):
        wanted.append(Wanted(job.args, f"the arguments of {job.name}()"))
    return wanted


def _unpack(process: Process, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    packed = job.args
    name = job.name
    if isinstance(packed, bytes):
        args, kwargs = deserialize_args(packed, target=name, side="the worker")
    elif isinstance(packed, Stored):
        data, buffers = read_layout(process.store.view(packed))
        args, kwargs = deserialize_args(data, buffers, target=name, side="the worker")
    else:
        args, kwargs = deserialize_args(packed.data, packed.buffers, target=name, side="the worker")
    if job.deps:
        positions = list(args)
        for dep in job.deps:
            value = process.values.unpack(dep.value, f"argument {dep.key!r} of {job.name}()")
            if isinstance(dep.key, int):
                positions[dep.key] = value
            else:
                kwargs[dep.key] = value
        args = tuple(positions)
    return args, kwargs


def perform(process: Process, context: TaskContext, job: Job, call: Callable[..., Any]) -> Outcome:
    """Run a call in this thread and answer it.

    Raises:
        ActorExit: the user's code ends its actor.
    """
    token = current.set(context)
    start = perf_counter_ns()
    try:
        args, kwargs = arguments(process, job)
        start = perf_counter_ns()
        result = call(*args, **kwargs)
        end = perf_counter_ns()
        # What only the arguments kept alive is not borrowed any more.
        del args, kwargs
        message, lent = pack_result(process, job, result, (end - start) // 1000)
        return Outcome(message, lent, start, end)
    except ActorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - user code; everything it raises becomes the answer
        end = perf_counter_ns()
        return Outcome(failure(process, context, job, error, (end - start) // 1000), [], start, end)
    finally:
        current.reset(token)


def pack_result(
    process: Process, job: Job, result: Any, took_us: int
) -> tuple[Done | Results, list[Any]]:
    """The answer that carries a result, and the handles inside it.

    Raises:
        UnserializableError: it cannot be sent.
        ValueError: it is not as many values as were announced.
    """
    if job.returns == 1:
        value, lent = pack_value(process, result, f"the result of {job.name}()")
        if isinstance(value, bytes):
            return Done(job.task_id, value, took_us), lent
        return Results(job.task_id, [value], took_us), lent
    if job.returns == 0:
        return Results(job.task_id, [], took_us), []
    values: list[Value] = []
    all_lent: list[Any] = []
    try:
        for index, item in enumerate(split_result(job, result)):
            value, lent = pack_value(process, item, f"result {index} of {job.name}()")
            values.append(wire_value(value))
            all_lent += lent
    except BaseException:
        # The call fails: nobody will hear of those before.
        with process.lock:
            process.deliveries.discard(values)
        raise
    return Results(job.task_id, values, took_us), all_lent


def pack_value(
    process: Process, value: Any, subject: str
) -> tuple[bytes | Inline | Stored, list[Any]]:
    """A value ready to be sent, and the handles inside it."""
    serialized = serialize(value, subject=subject)
    if not serialized.refs:
        return process.values.pack(serialized, []), []
    entries = process.values.entries_in(serialized)
    return process.values.pack(serialized, entries), list(serialized.refs)


def split_result(job: Job, result: Any) -> Iterator[Any]:
    """The several values that a task with `num_returns` > 1 returned together."""
    try:
        items = list(result)
    except TypeError:
        raise ValueError(
            f"{job.name}() has num_returns={job.returns} and must return that many values, but it returned "
            f"one {type(result).__name__}, which cannot be iterated"
        ) from None
    if len(items) != job.returns:
        raise ValueError(
            f"{job.name}() has num_returns={job.returns} and must return that many values, but it returned {len(items)}"
        )
    return iter(items)


def failure(
    process: Process, context: TaskContext, job: Job, error: BaseException, took_us: int
) -> Failure:
    """The answer that carries an exception of the user's code (or of unpacking its arguments)."""
    if context.cancelled and isinstance(error, KeyboardInterrupt | TaskCancelledError):
        cancelled = TaskCancelledError(
            f"{job.name}() was cancelled while it ran", job.task_id.hex()
        )
        return Failure(job.task_id, dump_exception(cancelled), took_us, application=False)
    return Failure(
        job.task_id,
        dump_exception(task_error(process, job, error)),
        took_us,
        cause_types=[f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__],
    )


def was_interrupted(message: Done | Results | Failure) -> bool:
    """Whether a call ended by `KeyboardInterrupt`."""
    return isinstance(message, Failure) and "builtins.KeyboardInterrupt" in message.cause_types


def task_error(process: Process, job: Job, error: BaseException) -> ShoalError:
    """The `TaskError` for an exception: the remote traceback first, shoal's own frames left out."""
    if isinstance(error, InternalError):
        return error
    cause = error
    while isinstance(cause, TaskError):
        # Raised by a `get` inside the task: what callers catch is the exception at the root.
        cause = cause.cause
    return TaskError(
        job.name,
        user_traceback(error),
        cause,
        process.pid,
        process.registered.node_ip,
        job.actor,
        job.actor_id.hex() if job.actor_id else None,
    )


def user_traceback(error: BaseException) -> str:
    """The traceback as text, without the frames of shoal itself."""
    summary = traceback.TracebackException.from_exception(error)
    todo: list[traceback.TracebackException | None] = [summary]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        kept = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE)]
        part.stack = traceback.StackSummary.from_list(kept)
        todo += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(summary.format())


def print_failure(text: str) -> None:
    """Show a failure that no caller will ask for, where the user's own output goes."""
    print(text, file=sys.stderr, flush=True)
