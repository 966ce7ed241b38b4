"""Messages that cannot be sent, because they are too large for a frame or hold something that has no encoding.

The connection leaves them out and lives on (see `wire.connection`). Here whoever waits for what they would have brought is told:
for a task that cannot leave, its owner answers itself, as if the worker had; in the place of a reply or of a value goes an
error; a request to the node is refused. Nobody would wait for the other messages, which are small and ours alone, so one of
them is a defect, and the connection ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shoal.errors import InternalError, UnserializableError
from shoal.messages.node import ActorChange, ActorCreate, LeaseRefused, LeaseRequest
from shoal.messages.peer import (
    Call,
    CallFull,
    Done,
    Failure,
    Fetched,
    Push,
    PushFull,
    Results,
)
from shoal.messages.values import Failed, Stored
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection

_TASKS: Final = frozenset({Push, PushFull, Call, CallFull})
_REPLIES: Final = frozenset({Done, Results, Failure})


def answer_unsent(process: Process, connection: Connection, message: Any, reason: str) -> None:
    """Answer for a message that was left out. Takes the lock."""
    with process.lock:
        if connection.closed:
            return
        answered = _answer(process, connection, message, reason)
        process.settle()
        process.tick()
    if not answered:
        connection.fail(InternalError(f"a message of ours ({type(message).__name__}) {reason}"))


def _answer(process: Process, connection: Connection, message: Any, reason: str) -> bool:
    kind = type(message)
    if kind in _TASKS:
        _fail_task(process, connection, message.task_id, reason)
    elif kind in _REPLIES:
        if kind is Results:
            _free(process, connection.peer_address, message)
        error = _error(
            f"the result of the task cannot be sent: its message {reason}. Return one list or array in the place of many "
            "values: what is above inline_limit_bytes goes through shared memory"
        )
        connection.send(Failure(message.task_id, error, message.took_us, application=False))
    elif kind is Fetched:
        error = _error(f"object {message.object_id.hex()} cannot be sent: its message {reason}")
        connection.send(Fetched(message.object_id, Failed(error)))
    elif kind is LeaseRequest:
        refusal = LeaseRefused(message.req, "start", f"the request for it {reason}")
        process.node_handlers[LeaseRefused](refusal)
    elif process.node.answered(
        getattr(message, "req", 0), UnserializableError(f"the request {kind.__name__} {reason}")
    ):
        return True
    elif kind is ActorCreate:
        _fail_actor(process, message, reason)
    else:
        return False
    return True


def _error(text: str) -> bytes:
    return dump_exception(UnserializableError(text))


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


def _free(process: Process, caller: str, message: Results) -> None:
    """Nobody will hear of these. (What was lent inside them stays registered for the caller until it ends.)"""
    locations = [value.location for value in message.values if isinstance(value, Stored)]
    process.deliveries.freed(caller, locations)


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
