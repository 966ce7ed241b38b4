"""`get`, `put`, `wait`, `cancel`, `kill`, `get_actor`: what programs do with references and handles."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar, overload

from shoal.api.actors import ActorHandle, handle_of
from shoal.core.tasks import Task
from shoal.errors import ShoalError
from shoal.messages.node import ActorInfo, ActorLookup
from shoal.runtime import current_process
from shoal.runtime.reentry import do_later, is_reentered
from shoal.runtime.refs import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.serial.values import serialize

T = TypeVar("T")


def _timeout(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} takes its timeout in seconds, as a number, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{what}: the timeout must be 0 or more seconds, not {value!r}")
    return None if value == math.inf else float(value)


@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: list[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of an object, or of each in a list; waits until there is one.

    numpy arrays and other buffers in large values are read-only views of shared memory.

    Args:
        refs: A reference, or a list of them.
        timeout: Seconds to wait at most; 0 takes only what is there.

    Raises:
        GetTimeoutError: the time was up (a `TimeoutError`).
        TaskError: the task raised; it is also an instance of the exception's own type.
        ObjectLostError: the object is gone.
        TypeError: `refs` is neither a reference nor a list of them.
    """
    process = current_process.process
    if process is None:
        process = current_process.require()
    seconds = None if timeout is None else _timeout(timeout, "get()")
    try:
        if isinstance(refs, ObjectRef):
            return process.waiting.get_one(refs, seconds)
        if isinstance(refs, list | tuple):
            # What is waited for is kept, though another thread may empty the list meanwhile.
            refs = list(refs)
            if set(map(type, refs)) - _ONLY_REFS:
                _refuse_others(refs)
            return process.waiting.get_many(refs, seconds)
    except ShoalError as error:
        # How shoal came to raise it is of no use to the reader.
        raise error.with_traceback(None) from error.__cause__
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError(
            "get() takes references; iterate over the generator to get them, one for each value that was yielded"
        )
    raise TypeError(
        f"get() takes a reference or a list of them, not a {type(refs).__name__}: {_short(refs)}"
    )


def _refuse_others(refs: Any) -> None:
    for position, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"get() takes a reference or a list of them; item {position} of the list is a "
                f"{type(ref).__name__}: {_short(ref)}"
            )


def put(value: T) -> ObjectRef[T]:
    """Store a value and return a reference to it. The value is copied: later changes to it are not seen.

    Raises:
        TypeError: `value` is a reference itself.
        UnserializableError: the value cannot be sent; the message says which part of it.
        ObjectStoreFullError: shared memory is full and stayed full; as `OutOfDiskError`, when the disk took nothing either.
    """
    process = current_process.process
    if process is None:
        process = current_process.require()
    if isinstance(value, ObjectRef):
        raise TypeError(
            "put() of a reference: it names an object already; pass it on as it is, or put a list with it"
        )
    serialized = serialize(value, subject="the value")
    values = process.values
    entries = values.entries_in(serialized) if serialized.refs else []
    packed = values.pack(serialized, entries)
    objects = process.objects
    object_id = process.context().next_put_id()
    reentered = is_reentered(process)
    with process.lock:
        entry = objects.own(object_id)
        if entries:
            objects.contain(entry, entries, None)
        entry.value = packed
        if process.dropped and not reentered:
            process.settle()
    ref: ObjectRef[T] = ObjectRef.__new__(ObjectRef)
    ref._entry = entry
    ref._drop = process.drop
    return ref


def wait(
    refs: list[Any], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the objects are ready, or the time is up.

    Args:
        refs: References (or generators, which are ready when their next item is), each once.
        num_returns: How many to wait for.
        timeout: Seconds to wait at most; 0 only looks.
        fetch_local: Whether objects of other nodes are ready only when they have been brought to this one.

    Returns:
        The ready ones, at most `num_returns`, and all the others, both in the order of `refs`.

    Raises:
        TypeError: `refs` is not a list of references.
        ValueError: a reference occurs twice, or `num_returns` is not within 1 and the length of the list.
    """
    process = current_process.process
    if process is None:
        process = current_process.require()
    if not isinstance(refs, list):
        raise TypeError(
            f"wait() takes a list of references, not a {type(refs).__name__}: {_short(refs)}"
        )
    seconds = None if timeout is None else _timeout(timeout, "wait()")
    # As in `get`.
    refs = list(refs)
    if not refs:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"wait() takes num_returns as an integer, not {num_returns!r}")
    if num_returns < 1:
        raise ValueError(f"wait() needs num_returns of 1 or more, not {num_returns}")
    if num_returns > len(refs):
        raise ValueError(f"wait() cannot return {num_returns} ready objects of {len(refs)}")
    try:
        # Nothing but references and generators has an entry: one pass both checks and collects.
        entries = [ref._entry for ref in refs]
    except AttributeError:
        for position, ref in enumerate(refs):
            if not isinstance(ref, ObjectRef | ObjectRefGenerator):
                raise TypeError(
                    f"wait() takes a list of references; item {position} is a {type(ref).__name__}: {_short(ref)}"
                ) from None
        raise
    if len(set(entries)) != len(refs):
        raise ValueError("wait() takes each reference once; one of them occurs twice in the list")
    return process.waiting.wait(refs, entries, num_returns, seconds, fetch_local)


_ONLY_REFS = {ObjectRef}


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Cancel a task or a call. `get` then raises `TaskCancelledError`, unless it had finished.

    A task that waits will not run. One that runs gets a `KeyboardInterrupt`; an async method is cancelled as asyncio
    does; other methods of actors see `get_runtime_context().is_canceled()`.

    Args:
        ref: A result of the task.
        force: End the worker of a running task at once, which cannot be caught. Other tasks that were sent to it run elsewhere.
        recursive: Cancel also what the task submitted.

    Raises:
        TypeError: `ref` is not a reference.
        ValueError: `force` for a call of an actor.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() takes a reference, not a {type(ref).__name__}: {_short(ref)}")
    process = current_process.require()
    entry = ref._entry
    if is_reentered(process):
        do_later(process, "shoal.cancel()", partial(cancel, ref, force=force, recursive=recursive))
        return
    with process.lock:
        task = entry.task
        if type(task) is Task and entry.value is None:
            if force and task.function is None:
                raise ValueError(
                    "cancel(force=True) is not for actors: it would end the actor; use shoal.kill()"
                )
            process.owner.cancel(task, force, recursive)
        elif entry.owner and entry.value is None:
            process.borrowing.cancel(entry, force, recursive)
        process.settle()
        process.reactor.flush_locked()


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once, with its process. Calls that wait for it fail with `ActorDiedError`.

    Args:
        actor: Its handle.
        no_restart: False lets it restart, if it has restarts left.

    Raises:
        ValueError: `actor` is not an actor's handle (tasks are cancelled).
        ActorHandleNotFoundError: the handle belongs to another session.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(  # noqa: TRY004 - Ray programs catch ValueError here
            f"kill() takes the handle of an actor, not a {type(actor).__name__}; tasks are ended by shoal.cancel()"
        )
    process, link = actor._connect()
    if is_reentered(process):
        do_later(process, "shoal.kill()", partial(kill, actor, no_restart=no_restart))
        return
    with process.lock:
        process.actors.kill(link, no_restart, actor._owner)
        process.settle()
        process.tick()
        process.reactor.flush_locked()


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle on a living actor by its name.

    Args:
        name: As given when it was created.
        namespace: Where to look; by default in this job's namespace.

    Raises:
        ValueError: there is none.
    """
    process = current_process.require()
    if not isinstance(name, str) or not name:
        raise ValueError(f"get_actor() takes the actor's name, not {name!r}")
    where = namespace or process.namespace
    info: ActorInfo | None = process.node.query(
        lambda req: ActorLookup(req, name, where), ActorInfo | None
    )
    if info is None:
        raise ValueError(
            f"there is no living actor named {name!r} in namespace {where!r}; it may have another namespace, or have ended"
        )
    return handle_of(process, info, None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
