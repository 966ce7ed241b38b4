"""Messages that cannot be sent, because they are too large for a frame or hold something that has no encoding.

The connection leaves them out and lives on (see `wire.connection`). Here whoever waits for what they would have brought is told:
for a task that cannot leave, its owner answers itself, as if the worker had; in the place of a reply or of a value goes an
error, before anything that follows it; a request to the node is refused. Nobody would wait for the other messages, which are
small and ours alone, so one of them is a defect, and the connection ends where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from shoal.errors import InternalError, UnserializableError
from shoal.messages.node import ActorChange, ActorCreate, LeaseRequest
from shoal.messages.peer import (
    Call,
    CallFull,
    Done,
    Failure,
    Fetched,
    Push,
    PushFull,
    Results,
    StreamItem,
)
from shoal.messages.values import Failed, Stored
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.messages.values import Value
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection

_TASKS: Final = frozenset({Push, PushFull, Call, CallFull})
_REPLIES: Final = frozenset({Done, Results, Failure, StreamItem, Fetched})

_FEWER_REFERENCES: Final = "Large values go through shared memory, but a message lists every reference in them: put fewer into one"


def answer_unsent(process: Process, connection: Connection, message: Any, reason: str) -> None:
    """Answer for a message that is left out. Called in the middle of a flush: what follows from it here is done a little later.

    Raises:
        InternalError: nobody would be told.
    """
    kind = type(message)
    if kind in _REPLIES:
        connection.send(_instead(message, reason))
        if made := _values(message):
            _soon(process, connection, partial(_free, process, connection.peer_address, made))
    elif kind in _TASKS:
        fail_task = partial(_fail_task, process, connection, message.task_id, reason)
        _soon(process, connection, fail_task)
    elif kind is LeaseRequest:
        _soon(process, connection, partial(process.owner.leases.unsent, message.req, reason))
    elif process.node.answered(
        getattr(message, "req", 0), UnserializableError(f"the request {kind.__name__} {reason}")
    ):
        return
    elif kind is ActorCreate:
        _soon(process, connection, partial(_fail_actor, process, message, reason))
    else:
        raise InternalError(f"a message of ours ({kind.__name__}) {reason}")


def _soon(process: Process, connection: Connection, action: Callable[[], None]) -> None:
    def act() -> None:
        with process.lock:
            # Whoever was to be told of the end of a connection has been told.
            if not connection.closed:
                action()
                process.settle()
                process.tick()

    process.reactor.call_later(0, act)


def _instead(message: Any, reason: str) -> Failure | StreamItem | Fetched:
    """The error that goes in the place of a reply or a value."""
    if type(message) is Fetched:
        what = f"object {message.object_id.hex()} cannot be sent: its message {reason}. {_FEWER_REFERENCES}"
        return Fetched(message.object_id, Failed(_error(what)))
    if type(message) is StreamItem:
        what = f"item {message.index} of the stream cannot be sent: its message {reason}. {_FEWER_REFERENCES}"
        return StreamItem(message.task_id, message.index, Failed(_error(what)))
    if type(message) is Failure:
        # Whether it is tried again is decided by what was raised, as ever.
        causes = [name for name in message.cause_types if name.isprintable()]
        what = (
            f"the task raised an exception ({causes[0] if causes else 'of unknown type'}) that cannot be sent: its message "
            f"{reason}. Let its arguments say less"
        )
        return Failure(
            message.task_id,
            _error(what),
            message.took_us,
            message.application,
            causes,
            message.stream_length,
        )
    what = f"the result of the task cannot be sent: its message {reason}. "
    if type(message) is Results and len(message.values) > 1:
        what += "Return one list or array in the place of many values: what is above inline_limit_bytes goes through shared memory"
    else:
        what += _FEWER_REFERENCES
    return Failure(message.task_id, _error(what), message.took_us, application=False)


def _error(text: str) -> bytes:
    return dump_exception(UnserializableError(text))


def _values(message: Any) -> list[Stored]:
    """The blocks that were made for a message's receiver."""
    values: Iterable[Value] = ()
    if type(message) is Results:
        values = message.values
    elif type(message) is StreamItem:
        values = [message.value]
    return [value for value in values if isinstance(value, Stored)]


def _free(process: Process, caller: str, made: list[Stored]) -> None:
    """Nobody will hear of these. (What was lent inside them stays registered for the caller until it ends.)"""
    process.deliveries.freed(caller, [value.location for value in made])


def _fail_task(process: Process, connection: Connection, task_id: bytes, reason: str) -> None:
    task = connection.lane.inflight.get(task_id) if connection.lane is not None else None
    if task is None:
        # It has failed otherwise, or goes elsewhere.
        return
    name = task.method or (task.function.name if task.function else "the task")
    error = _error(
        f"{name}() cannot be sent to its worker: the message {reason}. It carries the value of every argument up to "
        "inline_limit_bytes, also of references that are arguments themselves: pass them in a list, which leaves them "
        "references, or pass fewer"
    )
    process.handlers[Failure](connection, Failure(task_id, error, 0, application=False))


def _fail_actor(process: Process, message: ActorCreate, reason: str) -> None:
    spec = message.spec
    actors = process.actors
    link = actors.link(spec.actor_id, spec.class_name)
    cause = f"it could not be created: the message that asks for it {reason}; pass fewer arguments to its constructor"
    process.node_handlers[ActorChange](
        ActorChange(spec.actor_id, "DEAD", link.incarnation, cause=cause)
    )
    # The node may have been quicker to say that it knows of no such actor.
    link.cause = cause
    # Calls that are still to come must find it dead, and only here is that known.
    actors.keep(link)
