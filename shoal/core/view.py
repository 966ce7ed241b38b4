"""A daemon's view of the cluster: the latest row of each node, less what this daemon has asked of it since.

Guarantees
- Rows that arrive late are told by their version and ignored; so are rows of nodes that were removed.
- What was forwarded to a node counts as taken there (a *deduction*) from that moment until a row of the node shows it: until the
  version that the node named in its answer, or until the request is withdrawn. Nothing is counted twice or for ever.
- A row costs the same for any number of nodes: a few comparisons for each demand of which an index is in use (`core.candidates`).
  The first question about a demand builds its index, which costs as much for each node; `INDICES` are kept.

Leaves to `core.policy` what to make of it. Used from the daemon's loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from shoal.core.candidates import Candidates, Node, free_of
from shoal.core.resources import Amounts
from shoal.messages.placement import Selector, ViewRow

INDICES: Final = 32
"""Demands of which an index is kept. More: each row costs more. Fewer: programs with many shapes build indices over and over."""

_REMEMBERED: Final = 10_000
"""Nodes that were removed and are remembered as such."""

FIRST_BANDWIDTH: Final = 1_000_000_000
"""Bytes a second between nodes, until some have been measured."""


class View:
    """See the module's docstring. `local` is the node whose view it is, if it is a node's."""

    def __init__(self, local: bytes = b"") -> None:
        self.local = local
        # Raised when nodes come or go, or what they have changes: what is infeasible stays so until then.
        self.generation = 0
        self.bandwidth = FIRST_BANDWIDTH
        self._nodes: dict[bytes, Node] = {}
        self._gone: dict[bytes, None] = {}
        self._indices: dict[tuple[Amounts, Selector], Candidates] = {}
        self._deductions: dict[int, Node] = {}
        self._last_deduction = 0
        self._places: dict[bytes, tuple[bytes, ...]] = {}
        self._explained: dict[object, str] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, node_id: bytes) -> Node | None:
        """A node that is there."""
        return self._nodes.get(node_id)

    def was_removed(self, node_id: bytes) -> bool:
        """Whether a node was there and is gone for good."""
        return node_id in self._gone

    # --- rows ----------------------------------------------------------------------------------------------------

    def on_row(self, row: ViewRow) -> bool:
        """The state of a node, new or not; whether it was news."""
        if row.node_id in self._gone:
            return False
        node = self._nodes.get(row.node_id)
        if node is None:
            node = self._nodes[row.node_id] = Node(row)
            self._new_generation()
        elif row.version <= node.row.version:
            return False
        else:
            before, node.row = node.row, row
            if (before.total, before.labels, before.draining) != (
                row.total,
                row.labels,
                row.draining,
            ):
                self._new_generation()
            for number, (_, shown_by) in list(node.deducted.items()):
                if shown_by and shown_by <= row.version:
                    del node.deducted[number], self._deductions[number]
            self._recount(node)
        self._update(node)
        return True

    def on_removed(self, node_id: bytes) -> None:
        """A node has left or died; no row brings it back."""
        self._gone[node_id] = None
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        for number in node.deducted:
            del self._deductions[number]
        for index in self._indices.values():
            index.discard(node_id)
        self._new_generation()

    def _recount(self, node: Node) -> None:
        node.free = free_of(node.row)
        for amounts, _ in node.deducted.values():
            node.take(amounts)

    def _update(self, node: Node) -> None:
        for index in self._indices.values():
            index.update(node)

    def _new_generation(self) -> None:
        self.generation += 1
        self._explained.clear()

    # --- deductions ----------------------------------------------------------------------------------------------

    def deduct(self, node_id: bytes, amounts: Amounts) -> int:
        """Count amounts as taken at a node; the number by which to settle that."""
        self._last_deduction += 1
        node = self._nodes.get(node_id)
        if node is not None:
            node.deducted[self._last_deduction] = (amounts, 0)
            node.turn = self._last_deduction
            self._deductions[self._last_deduction] = node
            # By the difference: thousands of requests may wait for one node, each with a deduction of its own.
            node.take(amounts)
            self._update(node)
        return self._last_deduction

    def settle(self, number: int, version: int) -> None:
        """The node has answered: its rows from this version on show what became of it. 0: there is nothing to show."""
        node = self._deductions.get(number)
        if node is None:
            return
        if version > node.row.version:
            node.deducted[number] = (node.deducted[number][0], version)
            return
        amounts, _ = node.deducted.pop(number)
        del self._deductions[number]
        node.give_back(amounts)
        self._update(node)

    # --- demands -------------------------------------------------------------------------------------------------

    def candidates(self, amounts: Amounts, selector: Selector = ()) -> Candidates:
        """The index of a demand."""
        key = (amounts, selector)
        index = self._indices.pop(key, None)
        if index is None:
            index = Candidates(amounts, selector, self._nodes.values())
            if len(self._indices) >= INDICES:
                del self._indices[next(iter(self._indices))]
        # The least recently used is the first.
        self._indices[key] = index
        return index

    def explained(self, key: object, explain: Callable[[], str]) -> str:
        """What `explain` says; remembered until nodes come, go or change."""
        text = self._explained.get(key)
        if text is None:
            if len(self._explained) >= INDICES:
                self._explained.clear()
            text = self._explained[key] = explain()
        return text

    # --- placement groups ----------------------------------------------------------------------------------------

    def on_group(self, group_id: bytes, places: Sequence[bytes]) -> None:
        """Where the bundles of a group are; b"" for one that has no place now."""
        self._places[group_id] = tuple(places)

    def on_group_removed(self, group_id: bytes) -> None:
        """A group is no more."""
        self._places.pop(group_id, None)

    def places(self, group_id: bytes) -> tuple[bytes, ...] | None:
        """Where the bundles of a group are, if the group is known."""
        return self._places.get(group_id)

    # --- transfer ------------------------------------------------------------------------------------------------

    def on_transferred(self, size_bytes: int, took_ns: int) -> None:
        """So many bytes came from another node. Small ones say more about delays than about bandwidth, and do not count."""
        if size_bytes >= 1_000_000 and took_ns > 0:
            measured = size_bytes * 1_000_000_000 // took_ns
            self.bandwidth += (measured - self.bandwidth) // 8

    def transfer_us(self, size_bytes: int) -> int:
        """How long it takes to move so many bytes here."""
        return max(0, size_bytes) * 1_000_000 // max(1, self.bandwidth)

    def check(self) -> None:
        """Assert the invariants."""
        for index in self._indices.values():
            index.check(self._nodes.values())
        numbers: set[int] = set()
        for node in self._nodes.values():
            numbers |= node.deducted.keys()
            free = free_of(node.row)
            for amounts, shown_by in node.deducted.values():
                assert not shown_by or shown_by > node.row.version
                for name, amount in amounts:
                    free[name] = free.get(name, 0) - amount
            # A name of which the row knows nothing stays behind, with nothing.
            for name in free.keys() | node.free.keys():
                assert free.get(name, 0) == node.free.get(name, 0)
        assert numbers == self._deductions.keys()
        assert len(self._indices) <= INDICES
        assert not self._gone.keys() & self._nodes.keys()
