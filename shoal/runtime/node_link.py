"""The connection to the node daemon: messages out, requests with answers, and what the node says unasked.

Any thread may send or request. A request's thread waits in the reactor as for anything else, so it may lead meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shoal import errors
from shoal.errors import InternalError, ShoalError
from shoal.messages.node import Reply
from shoal.runtime.reentry import refuse_reentry
from shoal.wire.reactor import Waiter

if TYPE_CHECKING:
    from shoal.wire.connection import Connection
    from shoal.wire.reactor import Reactor

T = TypeVar("T")


class _Request(Waiter):
    """A request whose thread waits."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = None


class NodeLink:
    """See the module's docstring. `connection` is set once, before anything is sent.

    Attributes:
        when_lost: Called, with the lock held, when the connection is gone: with the reason.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.connection: Connection | None = None
        self._next_req = 1 << 32
        self._pending: dict[int, _Request] = {}
        self.lost: str = ""
        self.when_lost: list[Callable[[str], None]] = []

    def send(self, message: Any) -> None:
        """Send a message soon. Takes the lock."""
        with self.reactor.lock:
            self.send_locked(message)
        self.reactor.nudge()

    def send_locked(self, message: Any) -> None:
        """Send a message at the next flush; the caller holds the lock."""
        if self.connection is not None and not self.connection.closed:
            self.connection.send(message)

    def send_now(self, message: Any) -> None:
        """Send a message and flush it. Takes the lock."""
        with self.reactor.lock:
            self.send_locked(message)
            self.reactor.flush_locked()

    def request(
        self, make: Callable[[int], Any], kind: type[T], timeout_s: float | None = None
    ) -> T:
        """Send the request that `make(req)` makes and wait for its answer of type `kind`.

        Raises:
            ShoalError: the node refused, by the name of the error that it gives.
            TimeoutError: no answer came in time.
        """
        refuse_reentry(self.reactor, "what asks the node")
        request = _Request()
        with self.reactor.lock:
            if self.lost:
                raise ShoalError(self.lost)
            req = self._next_req = self._next_req + 1
            self._pending[req] = request
            self.send_locked(make(req))
            self.reactor.flush_locked()
        try:
            if not self.reactor.wait(request, timeout_s):
                raise TimeoutError(f"the node daemon did not answer within {timeout_s} s")
        finally:
            with self.reactor.lock:
                self._pending.pop(req, None)
        answer = request.answer
        if isinstance(answer, BaseException):
            raise answer
        if not isinstance(answer, kind):
            raise InternalError(
                f"the node answered with {type(answer).__name__} instead of {kind.__name__}"
            )
        return answer

    def query(self, make: Callable[[int], Any], kind: Any, timeout_s: float | None = 30.0) -> Any:
        """A request that is answered by `Reply`: its result, decoded as `kind`."""
        reply = self.request(make, Reply, timeout_s)
        if reply.error:
            raise error_from_text(reply.error)
        return msgspec.msgpack.decode(reply.result, type=kind) if reply.result else None

    def answered(self, req: int, answer: Any) -> bool:
        """An answer has come (with the lock held); False if nobody waits for it."""
        request = self._pending.get(req)
        if request is None:
            return False
        request.answer = answer
        request.finish()
        return True

    def lose(self, why: str) -> None:
        """The connection is gone (with the lock held): everybody who waits is told."""
        self.lost = why
        for request in list(self._pending.values()):
            request.answer = ShoalError(why)
            request.finish()
        for listener in self.when_lost:
            listener(why)


def error_from_text(text: str) -> Exception:
    """The exception that a `Reply` names as "ErrorClass: text"."""
    name, _, message = text.partition(": ")
    cls = getattr(errors, name, None)
    if isinstance(cls, type) and issubclass(cls, ShoalError):
        return cls(message)
    if name == "ValueError":
        return ValueError(message)
    return ShoalError(text)
