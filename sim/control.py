"""The simulated control store: who is alive, the latest rows, and what it takes to send them to everybody.

Views go out in turns: to each node the rows that have changed since what it has, and to none before `view_s` is over. There is one
control store for all nodes, with one core and one network, so the batch for one waits until those of the others are made and
sent. Only some nodes (those with requests of their own) are followed. All nodes get such batches: after each followed node as
many others have their turn as there are for each, and what that takes and sends is what it was for the followed one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from shoal.config import Config, view_s
from shoal.core.membership import Identity, Membership, NodeDown
from shoal.core.streams import Board
from shoal.messages.control import NodeDied
from shoal.messages.membership import Alive, Given, Latest, View, ViewTaken
from shoal.messages.node import NodeRow
from shoal.messages.placement import ViewRow
from sim.clock import MS, SECOND, US, Clock

_ENVELOPE_BYTES: Final = 5
"""Length of a frame and the batch in it."""


class Costs(NamedTuple):
    """What the control store's work takes, on one core of the machine on which this was measured, and what its network carries.

    `row_us` is for encoding a row, once for all nodes, `copy_us` for sending it to one of them."""

    row_us: float = 1.8
    message_us: float = 15.0
    copy_us: float = 0.05
    network_bytes_s: float = 1.25e9


class Counts:
    """Messages and bytes at the control store."""

    def __init__(self) -> None:
        self.messages_in = self.messages_out = 0.0
        self.bytes_in = self.bytes_out = 0.0
        self.rows_out = 0.0
        self.busy_us = 0.0


class Control:
    """See the module's docstring. `deaths` are told to the followed nodes."""

    def __init__(
        self, clock: Clock, config: Config, costs: Costs, nodes: int, followed: int
    ) -> None:
        self.counts = Counts()
        self.board: Board[ViewRow] = Board()
        self.members = Membership(config.node_timeout_s, config.node_reconnect_s)
        self._clock = clock
        self._costs = costs
        self._nodes = nodes
        self._followed = followed
        # Each followed node stands for so many.
        self._share = nodes / followed
        self._view_ns = round(view_s(config, nodes) * SECOND)
        self._encoder = msgspec.msgpack.Encoder()
        self._versions: dict[bytes, int] = {}
        self._on_view: dict[bytes, Callable[[list[ViewRow]], None]] = {}
        self._on_death: Callable[[bytes], None] = lambda _: None

    def follow(self, node_id: bytes, on_view: Callable[[list[ViewRow]], None]) -> None:
        """Send views to a node. It has the rows as they are now: it has joined."""
        self._versions[node_id] = self.board.version
        self._on_view[node_id] = on_view
        on_view(self.board.rows())
        if len(self._on_view) == self._followed:
            self._send_view(0)

    def on_deaths(self, tell: Callable[[bytes], None]) -> None:
        """Whom to tell of dead nodes."""
        self._on_death = tell
        self._clock.after(SECOND // 2, self._tick)

    def join(self, row: ViewRow) -> None:
        """A node joins."""
        identity = Identity(row.node_id, 1, row.node_id.hex(), row.node_id.hex())
        assert self.members.on_join(identity, self._clock.now) == ""
        self.members.outbox.clear()
        self.board.put(row.node_id, row)

    def on_latest(self, row: ViewRow) -> None:
        """A node's row has changed."""
        self._took(1, len(self._encoder.encode(Latest(row))))
        if self.members.on_heard(row.node_id, 1, self._clock.now) == "":
            self.board.put(row.node_id, row)
            # Rows change much more rarely than they are sent: as if each were sent to somebody.
            self.counts.busy_us += self._costs.row_us

    def on_alive(self, node_id: bytes) -> None:
        """A node had nothing to say but that it lives."""
        self._took(1, len(self._encoder.encode(Alive())))
        self.members.on_heard(node_id, 1, self._clock.now)
        # The control store says so, too.
        self._sent(1, len(self._encoder.encode(Alive())))

    def on_disconnected(self, node_id: bytes) -> None:
        """A node's connection has broken."""
        self.members.on_disconnected(node_id, 1, self._clock.now)

    def _tick(self) -> None:
        self.members.tick(self._clock.now)
        self.members.check()
        for effect in self.members.outbox:
            if isinstance(effect, NodeDown):
                self.board.discard(effect.node_id)
                self._sent(self._nodes, len(self._encoder.encode(_death(effect))))
                self._on_death(effect.node_id)
        self.members.outbox.clear()
        self._clock.after(SECOND // 2, self._tick)

    def _send_view(self, turn: int) -> None:
        node_id = list(self._on_view)[turn % self._followed]
        rows = self.board.since(self._versions[node_id])
        self._versions[node_id] = self.board.version
        lasts_ns = self._view_ns / self._followed
        if rows:
            size = len(self._encoder.encode(View(rows, True))) + _ENVELOPE_BYTES
            self._sent(self._share, size, len(rows))
            took_us, one_ns = self._takes(len(rows), size)
            self.counts.busy_us += took_us * self._share
            lasts_ns = max(lasts_ns, one_ns * self._share)
            self._took(self._share, len(self._encoder.encode(ViewTaken())))
            # It has been encoded, and then it travels.
            self._clock.after(round(one_ns) + MS // 2, self._on_view[node_id], rows)
        self._clock.after(round(lasts_ns), self._send_view, turn + 1)

    def _takes(self, rows: int, size: int) -> tuple[float, float]:
        """Work, in µs, and time, in ns, for a batch to one node."""
        costs = self._costs
        took_us = costs.message_us + rows * costs.copy_us
        return took_us, max(took_us * US, size / costs.network_bytes_s * SECOND)

    def round_s(self) -> float:
        """How long it takes to send every row to every node."""
        rows = self.board.rows()
        size = len(self._encoder.encode(View(rows, True)))
        return self._nodes * self._takes(len(rows), size)[1] / SECOND

    def _took(self, messages: float, size: int) -> None:
        self.counts.messages_in += messages
        self.counts.bytes_in += messages * (size + _ENVELOPE_BYTES)
        self.counts.busy_us += messages * self._costs.message_us

    def _sent(self, messages: float, size: int, rows: int = 0) -> None:
        self.counts.messages_out += messages
        self.counts.bytes_out += messages * size
        self.counts.rows_out += messages * rows


def _death(effect: NodeDown) -> Given:
    """What nodes are told of it."""
    node_id, name, cause, _ = effect
    row = NodeRow(node_id, False, "10.0.0.1:7000", name, name, {}, {}, {}, "", 0)
    return Given(1, 0, NodeDied(row, cause))
