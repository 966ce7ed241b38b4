"""The nodes as the control store sees them: who is there, what each has, where work goes, and what they are told.

Knows nothing of connections: a node has a way for orders, which somebody else holds. Whether a node lives is decided elsewhere too
(`core.membership`); here it comes and goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Final

from shoal.control.link import OnOrder
from shoal.control.placing import Chosen, choose_node
from shoal.core.candidates import charge
from shoal.core.streams import Board
from shoal.core.view import View
from shoal.messages.node import ActorSpec, NodeRow
from shoal.messages.placement import InBundle, NodeAffinity, NodeLabels, ViewRow
from shoal.wire.addresses import place_of

REMEMBERED: Final = 1_000
"""Dead nodes that are still listed."""


class Nodes:
    """See the module's docstring. `board` has what views are made of; `view` is the control store's own."""

    def __init__(self) -> None:
        self.board: Board[ViewRow] = Board()
        self._rows: dict[bytes, NodeRow] = {}
        self._gone: OrderedDict[bytes, NodeRow] = OrderedDict()
        self._ways: dict[bytes, OnOrder] = {}
        self._at: dict[str, bytes] = {}
        # Nodes of this very process. A session of one machine has one, and no other: what does not fit waits there.
        self._local: dict[bytes, None] = {}
        # For choosing: with placements deducted that the nodes have not told of yet.
        self.view = View()
        self._rng = Random()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call this when the board has changed."""
        self._listeners.append(listener)

    # --- coming and going ----------------------------------------------------------------------------------------

    def add(self, row: NodeRow, way: OnOrder, *, local: bool = False) -> None:
        """A node is there, or is there again by another way."""
        node_id = row.node_id
        self._rows[node_id] = row
        self._ways[node_id] = way
        self._at[row.place] = node_id
        if local:
            self._local[node_id] = None
        if node_id not in self.board:
            self.set_row(row)

    def remove(self, node_id: bytes, cause: str, expected: NodeRow | None = None) -> NodeRow | None:
        """A node is gone, for `cause`, a clause; its last row. Of one that did not come back to a new control store that is the row
        that was `expected`."""
        row = self._rows.pop(node_id, expected)
        if row is None:
            return None
        self._ways.pop(node_id, None)
        self._local.pop(node_id, None)
        self.view.on_removed(node_id)
        self.board.discard(node_id)
        if self._at.get(row.place) == node_id:
            del self._at[row.place]
        row.alive = False
        row.cause = cause
        row.available = {}
        self._gone[node_id] = row
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        return row

    def set_row(self, row: NodeRow) -> bool:
        """What a node says of itself; whether this may help who waits. Of its resources, a view knows better."""
        self._rows[row.node_id] = row
        view = self.board.get(row.node_id)
        if view is not None and view.version:
            return False
        return self.set_view(ViewRow(row.node_id, 0, row.total, row.available, row.labels))

    def set_view(self, view: ViewRow) -> bool:
        """The latest state of a node; whether work that fitted nowhere may fit now."""
        row = self._rows.get(view.node_id)
        before = self.board.get(view.node_id)
        if row is None or (before is not None and view.version < before.version):
            return False
        self.view.on_row(view)
        self.board.put(view.node_id, view)
        row.total, row.labels = view.total, view.labels
        row.available = {name: max(0, amount) for name, amount in view.available.items()}
        for listener in self._listeners:
            listener()
        return before is None or (before.total, before.labels, before.draining) != (
            view.total,
            view.labels,
            view.draining,
        )

    # --- questions -----------------------------------------------------------------------------------------------

    def row(self, node_id: bytes) -> NodeRow | None:
        """Of a node that is there."""
        return self._rows.get(node_id)

    def living(self) -> list[NodeRow]:
        """The rows of all nodes that are there."""
        return list(self._rows.values())

    def listed(self) -> list[NodeRow]:
        """Those, and the rows of nodes that have died lately."""
        return [*self._rows.values(), *self._gone.values()]

    def views(self) -> list[ViewRow]:
        """The latest states of the nodes that are there."""
        rows = (self.board.get(node_id) for node_id in self._rows)
        return [row for row in rows if row is not None]

    def way(self, node_id: bytes) -> OnOrder | None:
        """The way for orders to a node that is there."""
        return self._ways.get(node_id)

    def others(self, node_id: bytes = b"") -> list[bytes]:
        """All nodes but one."""
        return [other for other in self._rows if other != node_id]

    def home_of(self, address: str) -> bytes:
        """The node of the process at an address, b"" if it is not there."""
        return self._at.get(place_of(address), b"")

    # --- placing -------------------------------------------------------------------------------------------------

    def choose(self, spec: ActorSpec) -> Chosen:
        """Where a life of an actor is to go."""
        shape = spec.placement_shape
        alone = self._local and len(self._local) == len(self._rows)
        if alone and not isinstance(shape.strategy, NodeAffinity | NodeLabels | InBundle):
            return Chosen(next(iter(self._local)))
        chosen = choose_node(spec, self.view, self.home_of(spec.owner), self._rng)
        row = self.board.get(chosen.node_id)
        if row is not None:
            # The next row that the node sends shows it.
            number = self.view.deduct(row.node_id, charge(shape.resources, shape.strategy))
            # In a session of one machine there may be none: its queue knows better.
            self.view.settle(number, 0 if alone else row.version + 1)
        return chosen
