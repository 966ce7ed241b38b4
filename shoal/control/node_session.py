"""What the control store says to one node, for as long as the node lives: orders, events and answers, over connections that come and go.

The control store's end of the two streams of `core.streams`. What waits for a node that takes nothing is bounded:

- *Events* (about an actor, a group, a job, a node) are superseded by later ones once `stream_backlog` messages wait.
- *Orders* are not dropped, and neither are *answers* to what has changed something. Their number is bounded by `orders_backlog`, and then
  the node is given up: `check` sees to it.
- *Answers* to other questions are refused once `answers_unread_bytes` of answers wait, and given again when the node has taken some.
- Of all that, a connection is handed a few messages at a time, and none while `_MOST_PENDING_BYTES` wait in it: what is encoded is
  bounded whatever waits.

Everything runs in the control store's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from shoal.config import Config
from shoal.control.visitors import answer_of
from shoal.core.streams import Incoming, Outgoing
from shoal.messages.control import (
    ActorChanged,
    EndJob,
    GroupChanged,
    NodeDied,
    NodeJoined,
    Order,
)
from shoal.messages.membership import Answer, Given, Taken
from shoal.wire.aio import PeerConnection

_log = logging.getLogger("shoal.control")

_AT_ONCE: Final = 64
"""Messages for a node in one turn of the loop."""

_MOST_PENDING_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may wait in a connection before more is added. Higher than any view, which is not acknowledged as these messages are."""


def _merge(old: Order | Answer, new: Order | Answer) -> Order | Answer:
    """The newest state, for all who were to hear of an older one."""
    if isinstance(old, ActorChanged) and isinstance(new, ActorChanged):
        return ActorChanged(list(dict.fromkeys([*old.clients, *new.clients])), new.change)
    return new


def _key(order: Order) -> Any:
    """What an event is about, if only the newest about it matters. Orders have no key: each must be obeyed."""
    match order:
        case ActorChanged():
            return order.change.actor_id
        case NodeJoined() | NodeDied():
            return order.row.node_id
        case GroupChanged(change):
            return b"group", change.group_id
        case EndJob(job_id, _, _):
            return b"job", job_id
    return None


class NodeSession:
    """One node, for as long as it lives. `view` is the version of the board that it has.

    Args:
        check: Called when more waits for the node than before: it may be too much.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        node_id: bytes,
        session: int,
        heard_before: int,
        check: Callable[[NodeSession], None],
    ) -> None:
        self.node_id = node_id
        self.session = session
        self.connection: PeerConnection | None = None
        self.view = 0
        self.view_on_way = False
        self.incoming = Incoming()
        # What an earlier control store has written down of it: said again, it has taken effect already.
        self.heard_before = heard_before
        # That it is given up is decided once.
        self.given_up = False
        self._loop = loop
        self._check = check
        self._most_unread_bytes = config.answers_unread_bytes
        # Bytes of answers that it has not said it has.
        self.unread_bytes = 0
        self._outgoing: Outgoing[Order | Answer] = Outgoing(
            config.stream_window, config.stream_backlog, _merge
        )
        # What it has said up to this number is durable; up to that, it knows.
        self.durable = 0
        self._said_durable = 0
        self._scheduled = False

    # --- what the node is told -----------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """How many orders, events and answers wait for it."""
        return self._outgoing.waiting + self._outgoing.unacknowledged

    def give(self, order: Order) -> None:
        """An order, or an event."""
        self._outgoing.push(order, _key(order))
        self._check(self)
        self._schedule()

    def on_answered(self, req: int, needed: bool, done: asyncio.Future[Any]) -> None:
        """A question has its answer."""
        if not done.cancelled():
            # Encoded now or not at all: until then an answer may be a reference to what the store has.
            refused = not needed and self.unread_bytes > self._most_unread_bytes
            self.answer(self._refusal(req) if refused else answer_of(req, done), needed=needed)

    def answer(self, answer: Answer, *, needed: bool = False) -> None:
        """The answer to a question. `needed`: the question changed something, or had an answer already."""
        self.unread_bytes += _size(answer)
        self._outgoing.push(answer)
        self._check(self)
        self._schedule()

    def _refusal(self, req: int) -> Answer:
        return Answer(
            req,
            b"",
            f"ShoalError: {self.unread_bytes >> 20:,} MiB of answers wait for this node already, which is slow to take them or takes "
            "none. Ask again later, or for less",
        )

    def acknowledge(self, number: int) -> None:
        """What the node has said up to this number is durable."""
        self.durable = max(self.durable, number)
        self._schedule()

    def _schedule(self) -> None:
        """Everything of one turn of the loop leaves together."""
        if self.connection is not None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        connection = self.connection
        if connection is None:
            return
        if self.durable > self._said_durable:
            self._said_durable = self.durable
            connection.send(Taken(self.durable))
        if connection.pending_bytes > _MOST_PENDING_BYTES:
            # The rest follows when it says that it has some of this.
            return
        entries = self._outgoing.take(_AT_ONCE)
        for entry in entries:
            if entry.missed:
                _log.warning(
                    "the node %s takes its events so slowly that %d were superseded by later ones",
                    self.node_id.hex()[:8],
                    entry.missed,
                )
            connection.send(Given(entry.number, entry.missed, entry.message))
        if len(entries) == _AT_ONCE:
            self._schedule()

    def on_taken(self, number: int) -> list[int]:
        """The node has what it was told up to this number; the questions whose answers were among it."""
        done = [entry.message for entry in self._outgoing.on_taken(number)]
        answers = [message for message in done if isinstance(message, Answer)]
        self.unread_bytes -= sum(map(_size, answers))
        self._schedule()
        return [answer.req for answer in answers]

    # --- connections ---------------------------------------------------------------------------------------------

    def on_connection(self, connection: PeerConnection, taken: int) -> None:
        """The node is here, perhaps again, and has what it was told up to this number."""
        self.connection = connection
        self.on_taken(taken)
        self._outgoing.rewind()
        # Views are not repeated: it gets all rows once more, in their latest state.
        self.view = 0
        self.view_on_way = False
        self._said_durable = self.durable
        self._schedule()


def _size(answer: Answer) -> int:
    return len(answer.result) + len(answer.error)
