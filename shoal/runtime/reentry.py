"""User code that Python runs in the middle of shoal's own work: finalizers and signal handlers.

The garbage collector runs in whatever thread allocates, and signal handlers run between any two instructions of the main
thread. So a `__del__` of the user's, or a handler of SIGTERM, may call shoal in a thread that has changed its tables half-way, or
has read from a socket what it has not decoded yet. The locks are reentrant, or such a thread would wait for itself for ever;
and what user code can call asks before it enters:

- what changes the tables is done a little later (`is_reentered`, `do_later`): submitting, killing, cancelling;
- what would have to wait, or needs memory of the object store, is refused, with an error that says so (`refuse_reentry`).

Until then, new references may be entered in the table of objects, and new actors' records among the others: so those who go
through these tables go through a copy.

Dropping a reference or a handle needs none of it: it only appends to a queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.runtime import current_process

if TYPE_CHECKING:
    from shoal.runtime.process import Process
    from shoal.wire.reactor import Reactor

logger = logging.getLogger("shoal")


def is_reentered(process: Process) -> bool:
    """Whether this thread is in the middle of the runtime's work."""
    return process.lock._is_owned()


def do_later(process: Process, what: str, action: Callable[[], object]) -> None:
    """Let the reactor's leader do something between two rounds, without the lock. `what` names it, should it fail."""

    def act() -> None:
        try:
            action()
        except Exception:
            # There is nobody left whom it could be raised at.
            logger.exception("%s, called by a finalizer or a signal handler, failed", what)

    process.callbacks.append(act)
    process.reactor.wake()


def refuse_reentry(reactor: Reactor, what: str) -> None:
    """See that a call may wait.

    Raises:
        NotInitializedError: this process is a fork of that in which shoal runs.
        ShoalError: this thread is in the middle of the runtime's work.
    """
    current_process.refuse_forked()
    if reactor.is_entered():
        raise reentry_error(what)


def reentry_error(what: str) -> ShoalError:
    """The error for what cannot be done there."""
    return ShoalError(
        f"{what} was called by a finalizer (__del__) or a signal handler that Python runs while shoal is at work in the same "
        "thread, and it cannot go on there; call it before the object is dropped, or let the handler set a flag or raise "
        "SystemExit (.remote() of functions and actors' methods, kill() and cancel() are possible: they are carried out a "
        "little later)"
    )
