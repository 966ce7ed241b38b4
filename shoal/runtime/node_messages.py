"""What the node daemon says to this process: from the answer to its registration to the end of the daemon, which is that of the session.

Owns: the registration; the messages that come before every part of the process is in place, which are kept until it asks for them
(`begin`); and why the daemon ends, by its own word. What goes to the daemon, and the answers to requests, is up to `node_link`.

Threads: `join` and `begin` are called by the thread that makes the process; the rest by the reactor's leader, which takes the lock.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shoal.errors import AuthenticationError, NodeDiedError, ShoalError
from shoal.messages.node import FromNode, RegisterDriver, Registered, RegisterWorker, Reply
from shoal.messages.stores import QuotaGranted
from shoal.wire.connection import Connection
from shoal.wire.handshake import ClientHandshake
from shoal.wire.reactor import Reactor, Waiter, decoder_of

if TYPE_CHECKING:
    from shoal.runtime.node_link import NodeLink
    from shoal.runtime.process import Process

logger = logging.getLogger("shoal")

# Made at import, once for the zygote and all its forks: building it takes a millisecond.
_decoder = decoder_of(FromNode)

_REGISTER_TIMEOUT_S: Final = 30.0


class NodeMessages:
    """See the module's docstring.

    Attributes:
        last_words: Why the daemon ends, if it has said so.
        on_lost: Called, without the lock, when the daemon is gone: with the reason.
    """

    def __init__(self, reactor: Reactor, node: NodeLink) -> None:
        self._reactor = reactor
        self._node = node
        self.last_words = ""
        self.on_lost: Callable[[str], None] | None = None
        self._registered: Registered | None = None
        self._waiter = Waiter()
        self._backlog: list[Any] = []
        self._error: Exception | None = None
        self._process: Process | None = None

    def join(
        self,
        node_path: str,
        token: bytes,
        address: str,
        register: RegisterDriver | RegisterWorker,
    ) -> Registered:
        """Connect to the daemon and register with it.

        Raises:
            ConnectionError: no daemon answers there, or it has closed the connection.
            ShoalError: it does not want this process (`AuthenticationError`: or does not know the token).
            TimeoutError: it does not answer.
        """
        reactor = self._reactor
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_REGISTER_TIMEOUT_S)
            sock.connect(node_path)
        except OSError as error:
            sock.close()
            reactor.close()
            raise ConnectionError(f"no node daemon answers at {node_path}: {error}") from error
        with reactor.lock:
            connection = Connection(
                reactor,
                sock,
                ClientHandshake(token, address),
                self,
                _decoder,
                max_frame_bytes=512 * 1024 * 1024,
                peer_address=node_path,
            )
            self._node.connection = connection
            connection.send(register)
        if not reactor.wait(self._waiter, _REGISTER_TIMEOUT_S):
            self._error = TimeoutError(f"the node daemon at {node_path} did not answer")
        if self._registered is None:
            reactor.close()
            error_seen = self._error
            if isinstance(error_seen, AuthenticationError | ShoalError | TimeoutError):
                raise error_seen
            raise ConnectionError(f"joining the session failed: {error_seen}") from error_seen
        return self._registered

    def begin(self, process: Process) -> None:
        """Every part is in place: take up what has come, and what comes from now on."""
        with self._reactor.lock:
            self._process = process
            backlog, self._backlog = self._backlog, []
        if backlog:
            self._take(process, backlog)

    # --- as the connection's handler (the reactor's leader) ------------------------------------------------------

    def on_messages(self, connection: Connection, messages: list[Any]) -> None:
        """A batch from the daemon."""
        if self._process is not None:
            self._take(self._process, messages)
            return
        for message in messages:
            if self._registered is None and isinstance(message, Registered):
                self._registered = message
                self._waiter.finish()
            elif self._registered is None and isinstance(message, Reply) and message.error:
                self._error = ShoalError(message.error)
                self._waiter.finish()
            else:
                self._backlog.append(message)

    def _take(self, process: Process, messages: list[Any]) -> None:
        node = self._node
        handlers = process.node_handlers
        with process.lock:
            for message in messages:
                kind = type(message)
                if kind is Reply or kind is QuotaGranted:
                    if not node.answered(message.req, message) and kind is Reply and message.error:
                        logger.error("the node refused a request: %s", message.error)
                    continue
                handler = handlers.get(kind)
                if handler is not None:
                    handler(message)
            process.settle()
            if process.tick_waiters:
                process.tick()

    def on_closed(self, connection: Connection, error: Exception | None) -> None:
        """The daemon is gone: the session is over."""
        process = self._process
        if process is None:
            self._error = error or ConnectionError("the node daemon closed the connection")
            self._waiter.finish()
            return
        if process.closed:
            return
        cause = self.last_words or error
        why = "the session is over: its node daemon ended" + (f" ({cause})" if cause else "")
        with process.lock:
            self._node.lose(why)
            process.fail_everything(
                NodeDiedError(f"{why}; call shoal.shutdown(), then shoal.init() for a new one")
            )
        if self.on_lost is not None:
            self.on_lost(why)

    def on_unsent(self, connection: Connection, message: Any, reason: str) -> None:
        """A message to the daemon cannot be sent."""
        if self._process is not None:
            self._process.on_unsent(connection, message, reason)
            return
        self._error = ShoalError(f"{type(message).__name__} {reason}")
        self._waiter.finish()
