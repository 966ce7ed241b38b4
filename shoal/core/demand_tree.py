"""Demands in an order of their own, of which the first that can be met is found without looking at each.

A search tree (a treap: its shape is that of a random one, whatever the order in which items come). Every node knows the least and
the most that the items below it ask for, resource by resource: a part of the tree whose least cannot be met has nothing to serve,
one whose most can has nothing that is too big. With one resource that is scarce, a search looks at some `log n` nodes. Where
several are scarce at once, each in turn for another item, the bounds say less, and it may look at more.

Keys are unique. Leaves to `core.turns` what the order means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Final, Generic, TypeVar

from shoal.core.resources import Amounts

_BITS: Final = (1 << 64) - 1

T = TypeVar("T")
Key = tuple[int, ...]
Test = Callable[[Amounts], bool]
"""Whether a demand can be met. Where one can, whatever asks for no more of anything can, too."""


class DemandTree(Generic[T]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self._nodes: dict[T, _Node[T]] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[T]:
        """In order. The tree stays as it is meanwhile."""
        return _in_order(self._root)

    def key_of(self, item: T) -> Key:
        """Where an item of the tree stands."""
        return self._nodes[item].key

    def put(self, item: T, key: Key, amounts: Amounts) -> None:
        """Enter an item, or move it to another place."""
        node = self._nodes.get(item)
        if node is not None:
            if node.key == key:
                return
            self.discard(item)
        self._made += 1
        node = self._nodes[item] = _Node(item, key, amounts, _scattered(self._made))
        self._root = _insert(self._root, node)

    def discard(self, item: T) -> None:
        """Take an item out, if it is in."""
        node = self._nodes.pop(item, None)
        if node is not None:
            self._root = _remove(self._root, node.key)

    def first_met(self, met: Test) -> T | None:
        """The first item whose demand can be met."""
        found = _first_met(self._root, met)
        return None if found is None else found.item

    def first_unmet(self, met: Test) -> T | None:
        """The first item whose demand cannot be met."""
        found = _first_unmet(self._root, met)
        return None if found is None else found.item

    def asking_for(self, names: Collection[str]) -> Iterator[T]:
        """Those that ask for any of these resources, in order. The tree stays as it is meanwhile."""
        return _asking_for(self._root, names)

    def check(self) -> None:
        """Assert the invariants."""
        nodes = list(_check(self._root))
        assert len(nodes) == len(self._nodes)
        assert all(self._nodes[node.item] is node for node in nodes)
        assert all(a.key < b.key for a, b in pairwise(nodes))


class _Node(Generic[T]):
    """An item. `least` and `most` bound what is asked for from here on down; what `least` does not name, somebody does without. Both are
    found out when they are asked for: one order is searched for the one, the other for the other."""

    __slots__ = ("_least", "_most", "amounts", "item", "key", "left", "rank", "right")

    def __init__(self, item: T, key: Key, amounts: Amounts, rank: int) -> None:
        self.item = item
        self.key = key
        self.amounts = amounts
        self.rank = rank
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self._least: Amounts | None = amounts
        self._most: Amounts | None = amounts

    def changed(self) -> None:
        """Something below is another."""
        self._least = self._most = None

    def least(self) -> Amounts:
        """No item from here on down asks for less of anything."""
        least = self._least
        if least is None:
            least = self.amounts
            if self.left is not None:
                least = _least(least, self.left.least())
            if self.right is not None:
                least = _least(least, self.right.least())
            self._least = least
        return least

    def most(self) -> Amounts:
        """No item from here on down asks for more of anything."""
        most = self._most
        if most is None:
            most = self.amounts
            if self.left is not None:
                most = _most(most, self.left.most())
            if self.right is not None:
                most = _most(most, self.right.most())
            self._most = most
        return most


def _scattered(number: int) -> int:
    """A rank for the tree: 64 bits in which nobody sees the number (the last steps of SplitMix64). As good as chance for the
    shape of the tree, and the same requests make the same one."""
    mixed = number * 0x9E3779B97F4A7C15 & _BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _BITS
    return mixed ^ mixed >> 31


def _least(a: Amounts, b: Amounts) -> Amounts:
    if a == b:
        return a
    others = dict(b)
    return tuple([(name, min(amount, others[name])) for name, amount in a if name in others])


def _most(a: Amounts, b: Amounts) -> Amounts:
    if a == b:
        return a
    most = dict(a)
    for name, amount in b:
        if amount > most.get(name, -1):
            most[name] = amount
    return tuple(sorted(most.items()))


# --- changes: heaps by rank, in the order of the keys -----------------------------------------------------------------


def _insert(node: _Node[T] | None, new: _Node[T]) -> _Node[T]:
    if node is None:
        return new
    if new.rank > node.rank:
        new.left, new.right = _split(node, new.key)
        new.changed()
        return new
    if new.key < node.key:
        node.left = _insert(node.left, new)
    else:
        node.right = _insert(node.right, new)
    node.changed()
    return node


def _split(node: _Node[T] | None, key: Key) -> tuple[_Node[T] | None, _Node[T] | None]:
    """What is before a key, and what is after it."""
    if node is None:
        return None, None
    if node.key < key:
        node.right, after = _split(node.right, key)
        node.changed()
        return node, after
    before, node.left = _split(node.left, key)
    node.changed()
    return before, node


def _remove(node: _Node[T] | None, key: Key) -> _Node[T] | None:
    assert node is not None, "what is taken out was in"
    if key == node.key:
        return _join(node.left, node.right)
    if key < node.key:
        node.left = _remove(node.left, key)
    else:
        node.right = _remove(node.right, key)
    node.changed()
    return node


def _join(before: _Node[T] | None, after: _Node[T] | None) -> _Node[T] | None:
    if before is None or after is None:
        return before or after
    if before.rank > after.rank:
        before.right = _join(before.right, after)
        before.changed()
        return before
    after.left = _join(before, after.left)
    after.changed()
    return after


# --- searches -------------------------------------------------------------------------------------------------------


def _first_met(node: _Node[T] | None, met: Test) -> _Node[T] | None:
    if node is None:
        return None
    least = node.least()
    if not met(least):
        return None
    found = _first_met(node.left, met)
    if found is not None:
        return found
    # Mostly that of a leaf, which was asked already.
    if least is node.amounts or met(node.amounts):
        return node
    return _first_met(node.right, met)


def _first_unmet(node: _Node[T] | None, met: Test) -> _Node[T] | None:
    if node is None:
        return None
    most = node.most()
    if met(most):
        return None
    found = _first_unmet(node.left, met)
    if found is not None:
        return found
    if most is node.amounts or not met(node.amounts):
        return node
    return _first_unmet(node.right, met)


def _in_order(node: _Node[T] | None) -> Iterator[T]:
    if node is not None:
        yield from _in_order(node.left)
        yield node.item
        yield from _in_order(node.right)


def _asking_for(node: _Node[T] | None, names: Collection[str]) -> Iterator[T]:
    if node is None or not any(name in names for name, _ in node.most()):
        return
    yield from _asking_for(node.left, names)
    if any(name in names for name, _ in node.amounts):
        yield node.item
    yield from _asking_for(node.right, names)


def _check(node: _Node[T] | None) -> Iterator[_Node[T]]:
    if node is None:
        return
    least, most = dict(node.least()), dict(node.most())
    node.changed()
    assert (dict(node.least()), dict(node.most())) == (least, most)
    for child in (node.left, node.right):
        assert child is None or child.rank <= node.rank
    yield from _check(node.left)
    yield node
    yield from _check(node.right)
