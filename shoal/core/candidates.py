"""The nodes that could serve one demand, kept in order while rows change, so that choosing one costs the same for ten nodes as for
ten thousand.

A `Candidates` is an index for one demand (amounts and a selector). Every node that could serve it when idle is in one of five
sets: by whether it has room now, how full it is, and whether it has GPUs that the demand has no use for. A choice draws a
bounded sample from the first set that is not empty and takes the best of it. With no more nodes than the sample holds, that
is the best of all; with more, it is nearly as good, and many daemons that choose at once by the same view do not all
choose the same node.

`update` costs a few comparisons, for each index in use, whenever a row changes. Building an index costs that once for each node.
GPUs count by their sum: that half of each of two is free does not make room for a whole one, which the node will say.

Leaves to `core.view` when to update, and to `core.policy` what order of the sets a strategy wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from shoal.core.labels import matches
from shoal.core.resources import CPU, GPU, Amounts
from shoal.messages.node import UNIT
from shoal.messages.placement import InBundle, Selector, Strategy, ViewRow

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

SAMPLE: Final = 8
"""How many nodes of a set are looked at. More: better choices, and more daemons that make the same one."""

UNKNOWN_RUN_US: Final = 100_000
"""How long a lease is taken to last at a node that has not measured any. Long enough that a full node does not pass for a short wait."""

# The sets. In each half: idle, less than half full, and half full or more.
IDLE: Final = 0
USED: Final = 1
FULL: Final = 2
SPARE: Final = 3
"""Added for a node with GPUs, if the demand has none: others come first, so that those stay free for what needs them."""
BUSY: Final = 6
"""No room now. Ordered by how long one would wait."""
SETS: Final = 7

PACK: Final = (USED, IDLE, FULL, USED + SPARE, IDLE + SPARE, FULL + SPARE)
SPREAD: Final = (IDLE, USED, FULL, IDLE + SPARE, USED + SPARE, FULL + SPARE)


def charge(amounts: Amounts, strategy: Strategy | None) -> Amounts:
    """What a demand takes of a node, as `Node.free` counts it: of a placement group under names of the group's own."""
    if not isinstance(strategy, InBundle):
        return amounts
    return tuple((_of_group(name, strategy.group_id), amount) for name, amount in amounts)


def free_of(row: ViewRow) -> dict[str, int]:
    """What a row says is free, on the node and in the groups' bundles there."""
    free = dict(row.available)
    for group_id, amounts in row.groups.items():
        for name, amount in amounts.items():
            free[_of_group(name, group_id)] = amount
    return free


def _of_group(name: str, group_id: bytes) -> str:
    return f"{name}@{group_id.hex()}"


class Node:
    """A node as a view has it: its latest row, and what is free after the deductions. `turn` is the number of the last of these: of
    nodes that are as good, the one whose turn was longest ago is taken."""

    __slots__ = ("deducted", "free", "node_id", "row", "turn")

    def __init__(self, row: ViewRow) -> None:
        self.node_id = row.node_id
        self.row = row
        self.free = free_of(row)
        # By number: amounts, and the version of the row that shows them, 0 while that is not known.
        self.deducted: dict[int, tuple[Amounts, int]] = {}
        self.turn = 0

    def take(self, amounts: Amounts) -> None:
        """So much less is free."""
        free = self.free
        for name, amount in amounts:
            free[name] = free.get(name, 0) - amount

    def give_back(self, amounts: Amounts) -> None:
        """So much more is free."""
        for name, amount in amounts:
            self.free[name] += amount

    def could_serve(self, amounts: Amounts) -> bool:
        """Whether the node could, if it were idle."""
        total = self.row.total
        return all(amount <= total.get(name, 0) for name, amount in amounts)

    def has_room(self, amounts: Amounts) -> bool:
        """Whether it can now, as far as is known."""
        free = self.free
        return all(amount <= free.get(name, 0) for name, amount in amounts)

    def fullness(self, amounts: Amounts) -> float:
        """How full the node is: the share in use, from 0 to 1, of the scarcest resource of a demand; of CPUs, if it asks for
        nothing."""
        total, free = self.row.total, self.free
        fullest = 0.0
        for name, _ in amounts or ((CPU, 0),):
            of = total.get(name, 0)
            if of:
                used = 1 - free.get(name, 0) / of
                fullest = max(fullest, used)
        return fullest

    def wait_us(self, amounts: Amounts) -> int:
        """How long a newcomer would wait there: nothing if there is room, else its place in the queue."""
        row = self.row
        if self.has_room(amounts) and not row.waiting:
            return 0
        ahead = row.waiting + len(self.deducted) + 1
        return ahead * (row.mean_run_us or UNKNOWN_RUN_US) // max(1, row.servers)

    def bundle_wait_us(self, charged: Amounts) -> int:
        """How long a newcomer would wait there for what a placement group has on the node: the node's own queue does not matter."""
        if self.has_room(charged):
            return 0
        row = self.row
        return (len(self.deducted) + 1) * (row.mean_run_us or UNKNOWN_RUN_US) // max(1, row.servers)


class _NodeSet:
    """A set of nodes, each with a key, of which a sample's best can be drawn. The keys lie beside each other, so that a draw from ten
    thousand nodes looks at few places in memory."""

    __slots__ = ("_keys", "_places", "nodes")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._keys: list[float] = []
        self._places: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def add(self, node: Node, key: float) -> None:
        self._places[node.node_id] = len(self.nodes)
        self.nodes.append(node)
        self._keys.append(key)

    def set_key(self, node_id: bytes, key: float) -> None:
        self._keys[self._places[node_id]] = key

    def key(self, node_id: bytes) -> float:
        return self._keys[self._places[node_id]]

    def remove(self, node_id: bytes) -> None:
        place = self._places.pop(node_id)
        last, key = self.nodes.pop(), self._keys.pop()
        if last.node_id != node_id:
            self.nodes[place] = last
            self._keys[place] = key
            self._places[last.node_id] = place

    def best(self, rng: Random, without: Collection[bytes], sign: int) -> Node | None:
        """Of a sample, the node with the smallest key (`sign` 1) or the largest (-1), of several the one whose turn was longest ago; None
        if all that were seen are in `without`."""
        nodes, keys = self.nodes, self._keys
        count = len(nodes)
        if not count:
            return None
        # From a random place on in long strides: one number to draw instead of eight, and no node twice.
        place = int(rng.random() * count)
        stride = _STRIDE if count % _STRIDE else 1
        found: Node | None = None
        least = 0.0
        seen = 0
        for _ in range(min(count, SAMPLE + len(without))):
            key = sign * keys[place]
            if not without or nodes[place].node_id not in without:
                node = nodes[place]
                if found is None or key < least or (key == least and node.turn < found.turn):
                    found, least = node, key
                seen += 1
                if seen == SAMPLE:
                    break
            place = (place + stride) % count
        return found


_STRIDE: Final = 7919
"""A prime: steps of it come to every place of a list, unless its length is a multiple."""


class Candidates:
    """See the module's docstring."""

    def __init__(self, amounts: Amounts, selector: Selector, nodes: Iterable[Node]) -> None:
        self.amounts = amounts
        self.selector = selector
        self._wants_gpus = any(name == GPU for name, _ in amounts)
        self._sets = [_NodeSet() for _ in range(SETS)]
        self._set_of: dict[bytes, int] = {}
        for node in nodes:
            self.update(node)

    def __len__(self) -> int:
        return len(self._set_of)

    @property
    def have_room(self) -> bool:
        """Whether any of them has room now."""
        return len(self._sets[BUSY]) < len(self._set_of)

    def set_of(self, node_id: bytes) -> int | None:
        """The set that a node is in; None if it could not serve the demand at all."""
        return self._set_of.get(node_id)

    def update(self, node: Node) -> None:
        """A node is new or has changed."""
        node_id = node.node_id
        before = self._set_of.get(node_id)
        after = self._classify(node)
        if after is None:
            if before is not None:
                self._sets[before].remove(node_id)
                del self._set_of[node_id]
            return
        level, key = after
        if before == level:
            self._sets[level].set_key(node_id, key)
            return
        if before is not None:
            self._sets[before].remove(node_id)
        self._set_of[node_id] = level
        self._sets[level].add(node, key)

    def discard(self, node_id: bytes) -> None:
        """A node is gone."""
        before = self._set_of.pop(node_id, None)
        if before is not None:
            self._sets[before].remove(node_id)

    def _classify(self, node: Node) -> tuple[int, float] | None:
        """The set that a node belongs to, and its key there: how full it is, or how long one would wait."""
        row, amounts = node.row, self.amounts
        if row.draining or not node.could_serve(amounts):
            return None
        if self.selector and not matches(row.labels, self.selector):
            return None
        if not node.has_room(amounts):
            return BUSY, node.wait_us(amounts)
        fullness = node.fullness(amounts)
        level = IDLE if fullness <= 0 else USED if fullness < 0.5 else FULL
        if not self._wants_gpus and row.total.get(GPU, 0) >= UNIT:
            level += SPARE
        return level, fullness

    # --- choices -------------------------------------------------------------------------------------------------

    def with_room(
        self, order: tuple[int, ...], rng: Random, without: Collection[bytes] = ()
    ) -> Node | None:
        """A node with room, by an order of the sets: of a sample the fullest, in the set where nodes are packed, else the
        emptiest."""
        for level in order:
            packs = order[0] == USED and level in {USED, USED + SPARE}
            found = self._sets[level].best(rng, without, -1 if packs else 1)
            if found is not None:
                return found
        return None

    def least_busy(self, rng: Random, without: Collection[bytes] = ()) -> Node | None:
        """Of a sample of those without room, the one where one would wait least."""
        return self._sets[BUSY].best(rng, without, 1)

    def roomy(self, order: tuple[int, ...], most: int) -> Iterator[Node]:
        """Up to so many nodes with room, in the order of the sets."""
        for level in order:
            for node in self._sets[level].nodes:
                if most <= 0:
                    return
                most -= 1
                yield node

    def able(self, most: int) -> Iterator[Node]:
        """Up to so many nodes that could serve the demand if they were idle."""
        return self.roomy(tuple(range(SETS)), most)

    def check(self, nodes: Iterable[Node]) -> None:
        """Assert that the index is what it would be if it were built now."""
        expected = {}
        for node in nodes:
            found = self._classify(node)
            if found is not None:
                level, key = found
                expected[node.node_id] = level
                assert self._sets[level].key(node.node_id) == key
        assert self._set_of == expected
        for level, members in enumerate(self._sets):
            ids = {node.node_id for node in members.nodes}
            assert ids == {node_id for node_id, at in expected.items() if at == level}
            assert len(ids) == len(members)
