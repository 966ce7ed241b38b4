"""Which node: pure functions from a view of the cluster and a demand to an answer.

Rule 1. The default: the local node while it has room and is less than half full; then the fullest of those that are less
        than half full; then the emptiest of all. So a small job stays together, and a large one spreads. Of nodes that are
        equally good the local one is taken, and GPUs are left to what needs them.
Rule 2. `Spread`: the emptiest.
Rule 3. Nobody has room: where one would wait least. The local node, unless one would wait less than half as long elsewhere: work that
        has been sent away is not easily called back, and everybody sees the same short queue.
Rule 4. Large arguments: of the node that rules 1 to 3 name, the local one, and those that have the most of the bytes, the one
        where waiting and moving the rest take least time together. Below `SLACK_US` a difference does not count, so small arguments
        do not matter.
Rule 5. A placement group: where its bundle is. If any of its bundles will do, rules 1 and 3 hold among their nodes, for what is
        free of the group there.
Rule 6. What no node could serve, if it were idle, is `Infeasible`, with what is missing and what would help. What only somebody's
        decision can bring (a group's reservation) is `Wait`. What nothing can bring is `Fail`.

Costs: a lookup, a sample of bounded size, and the nodes in `holders`. Ties are broken by the order of a sample, which is
drawn from the generator that the caller gives.

Leaves to `core.forwarding` what becomes of a request, and to the lease queues in which order they are served.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import nlargest
from typing import TYPE_CHECKING, Final, NamedTuple

from shoal.core.candidates import FULL, PACK, SPARE, SPREAD, Candidates, Node, charge
from shoal.core.explanations import why_no_node, why_not_node
from shoal.core.labels import selector_text
from shoal.core.resources import Amounts
from shoal.core.view import View
from shoal.messages.placement import (
    InBundle,
    NodeAffinity,
    NodeLabels,
    Selector,
    Spread,
    Strategy,
)

if TYPE_CHECKING:
    from random import Random

SLACK_US: Final = 2_000
"""A node that is better by less than this is not better."""

HOLDERS: Final = 4
"""Of the nodes that have arguments, how many are considered."""


class Demand(NamedTuple):
    """What a request asks of its place. `holders` says how many bytes of its large arguments each node has, of `size_bytes` in all."""

    amounts: Amounts
    strategy: Strategy | None = None
    holders: Mapping[bytes, int] = {}
    size_bytes: int = 0


class Local(NamedTuple):
    """Here: in the queue of this node."""


class Forward(NamedTuple):
    """At that node."""

    node_id: bytes


class Wait(NamedTuple):
    """Nowhere yet; ask again when the view has changed."""

    reason: str


class Infeasible(NamedTuple):
    """Nowhere, as the cluster stands; ask again when nodes have joined. The user should know."""

    reason: str


class Fail(NamedTuple):
    """Never."""

    reason: str


Answer = Local | Forward | Wait | Infeasible | Fail

_LOCAL: Final = Local()
_ANYWHERE: Final[tuple[Selector, ...]] = ((),)


def choose(view: View, demand: Demand, rng: Random, without: Collection[bytes] = ()) -> Answer:
    """Where a demand goes. Nodes in `without` have just refused it, and are taken only if there is no other."""
    match demand.strategy:
        case None:
            return _anywhere(view, demand, _ANYWHERE, PACK, rng, without)
        case Spread():
            return _anywhere(view, demand, _ANYWHERE, SPREAD, rng, without)
        case NodeLabels(choices, spread):
            order = SPREAD if spread else PACK
            return _anywhere(view, demand, choices, order, rng, without)
        case NodeAffinity() as affinity:
            return _at_node(view, demand, affinity, rng, without)
        case InBundle() as bundle:
            return _in_bundle(view, demand, bundle, rng, without)


def _to(view: View, node_id: bytes) -> Answer:
    return _LOCAL if node_id == view.local else Forward(node_id)


# --- rules 1 to 4 ---------------------------------------------------------------------------------------------------


def _anywhere(
    view: View,
    demand: Demand,
    choices: tuple[Selector, ...],
    order: tuple[int, ...],
    rng: Random,
    without: Collection[bytes],
) -> Answer:
    fallback: Candidates | None = None
    for selector in choices:
        index = view.candidates(demand.amounts, selector)
        if index.have_room:
            node = _with_room(view, index, order, rng, without)
            if node is not None:
                return _to(view, _near(view, demand, index, node, without).node_id)
        if fallback is None and len(index):
            fallback = index
    if fallback is not None:
        node = _least_busy(view, fallback, rng, without)
        if node is None:
            # All of them are in `without`: what they refused they are asked for again.
            node = fallback.with_room(order, rng) or fallback.least_busy(rng)
        assert node is not None, "candidates are in one of the sets"
        return _to(view, _near(view, demand, fallback, node, without).node_id)
    key = (demand.amounts, choices)
    return Infeasible(view.explained(key, lambda: why_no_node(view, demand.amounts, choices)))


def _with_room(
    view: View, index: Candidates, order: tuple[int, ...], rng: Random, without: Collection[bytes]
) -> Node | None:
    """Rules 1 and 2."""
    local = view.get(view.local)
    level = None if local is None or view.local in without else index.set_of(view.local)
    if local is None or level is None or level not in order:
        return index.with_room(order, rng, without)
    if order is PACK and level % SPARE != FULL:
        return local
    node = index.with_room(order, rng, without)
    if node is None:
        return local
    other = index.set_of(node.node_id)
    if other != level:
        return node if other is not None and order.index(other) < order.index(level) else local
    amounts = index.amounts
    here, there = local.fullness(amounts), node.fullness(amounts)
    if order is SPREAD and here == there:
        # What asks for nothing leaves all nodes as they are, and is to be spread all the same.
        return min(local, node, key=lambda each: each.turn)
    return node if there < here else local


def _least_busy(
    view: View, index: Candidates, rng: Random, without: Collection[bytes]
) -> Node | None:
    """Rule 3."""
    node = index.least_busy(rng, without)
    local = view.get(view.local)
    if local is None or view.local in without or index.set_of(view.local) is None or node is None:
        return node
    here, there = local.wait_us(index.amounts), node.wait_us(index.amounts)
    return node if 2 * there + SLACK_US < here else local


def _near(
    view: View, demand: Demand, index: Candidates, node: Node, without: Collection[bytes]
) -> Node:
    """Rule 4."""
    if view.transfer_us(demand.size_bytes) <= SLACK_US:
        return node
    holders = demand.holders
    best, least = node, _takes_us(view, demand, node) - SLACK_US
    for node_id in (view.local, *nlargest(HOLDERS, holders, key=lambda held: holders[held])):
        other = view.get(node_id)
        if other is not None and node_id not in without and index.set_of(node_id) is not None:
            takes = _takes_us(view, demand, other)
            if takes < least:
                best, least = other, takes
    return best


def _takes_us(view: View, demand: Demand, node: Node) -> int:
    missing = demand.size_bytes - demand.holders.get(node.node_id, 0)
    return node.wait_us(demand.amounts) + view.transfer_us(missing)


# --- strategies that name a node ------------------------------------------------------------------------------------


def _at_node(
    view: View, demand: Demand, affinity: NodeAffinity, rng: Random, without: Collection[bytes]
) -> Answer:
    node = view.get(affinity.node_id)
    name = f"node {affinity.node_id.hex()[:12]}"
    if node is None or node.row.draining or not node.could_serve(demand.amounts):
        if affinity.soft:
            return _anywhere(view, demand, _ANYWHERE, PACK, rng, without)
        if node is not None:
            return Infeasible(why_not_node(node.row, name, demand.amounts))
        if view.was_removed(affinity.node_id):
            return Fail(
                f"it may run on {name} only, which has left the cluster or died; let the affinity be soft, or name another node"
            )
        return Infeasible(
            f"it may run on {name} only, and there is no such node; let the affinity be soft, or name another node"
        )
    if not node.has_room(demand.amounts):
        if affinity.soft and affinity.spill:
            return _anywhere(view, demand, _ANYWHERE, PACK, rng, without)
        if affinity.fail:
            return Fail(f"it may run on {name} only, and is not to wait, but that node has no room")
    return _to(view, affinity.node_id)


def _in_bundle(
    view: View, demand: Demand, bundle: InBundle, rng: Random, without: Collection[bytes]
) -> Answer:
    places = view.places(bundle.group_id)
    name = f"placement group {bundle.group_id.hex()[:12]}"
    if places is None:
        return Wait(f"it is to run in {name}, which has not been reserved yet")
    if bundle.index >= len(places):
        return Fail(
            f"it is to run in bundle {bundle.index} of {name}, which has {len(places)} bundles, numbered from 0"
        )
    if bundle.index >= 0:
        node_id = places[bundle.index]
        if view.get(node_id) is None:
            return Wait(f"it is to run in bundle {bundle.index} of {name}, which has no node now")
        return _to(view, node_id)
    nodes = [node for node in map(view.get, dict.fromkeys(places)) if node is not None]
    if not nodes:
        return Wait(f"it is to run in {name}, which has no nodes now")
    charged = charge(demand.amounts, bundle)
    open_nodes = [node for node in nodes if node.node_id not in without] or nodes
    # As others choose by the same rows, not all the same one; but here, if that is as good as elsewhere.
    rng.shuffle(open_nodes)
    best = min(
        open_nodes, key=lambda node: (node.bundle_wait_us(charged), node.node_id != view.local)
    )
    return _to(view, best.node_id)


# --- the node's side ------------------------------------------------------------------------------------------------


def too_busy(present_us: int, expected_us: int) -> bool:
    """Whether a node should answer `Busy` to a request that was sent there in the hope to wait `expected_us`: it would wait
    much longer, by a view that was too old."""
    return present_us > 2 * expected_us + SLACK_US


def conditions_text(strategy: Strategy | None) -> str:
    """What a strategy asks of a node, as a clause for explanations; "" for nothing."""
    match strategy:
        case NodeAffinity(node_id, soft):
            return f"{'preferably ' if soft else ''}on node {node_id.hex()[:12]}"
        case NodeLabels(choices):
            return "on a node with " + ", or else ".join(
                selector_text(choice) for choice in choices
            )
        case InBundle(group_id, index):
            which = f"bundle {index}" if index >= 0 else "any bundle"
            return f"in {which} of placement group {group_id.hex()[:12]}"
        case Spread():
            return "on the emptiest node"
    return ""
