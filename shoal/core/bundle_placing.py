"""Which node gets which bundle of a placement group: functions over a view, whose deductions they leave behind.

STRICT_PACK     all on one node: a single choice for the sum of all.
PACK            on one node if any has room for all; else the largest first, each on a node that has one of them already.
SPREAD          each on a node of its own, the emptiest first, as long as there are any; then anywhere.
STRICT_SPREAD   each on a node of its own. A matching: if there is a way, it is found. Of each bundle no more nodes are looked at than
                there are bundles, which is enough: by then one of them is left over whatever the others take.

PACK and SPREAD are greedy: as with every bin packing, a way through may be missed while a cluster is nearly full. They are
tried again when anything changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shoal.core.candidates import PACK, SPREAD, Node
from shoal.core.explanations import why_no_node
from shoal.core.labels import matches
from shoal.core.resources import Amounts, amounts_text
from shoal.core.view import View
from shoal.messages.placement import Bundle, GroupSpec, LabelTerm, Selector

if TYPE_CHECKING:
    from random import Random

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

Wanted = Sequence[tuple[int, Bundle]]


class Placed(NamedTuple):
    """A bundle by its number, its node, and the deduction in the view that stands for it."""

    bundle: int
    node_id: bytes
    deduction: int


def place(
    view: View, spec: GroupSpec, missing: Iterable[int], taken: Collection[bytes], rng: Random
) -> list[Placed] | None:
    """Nodes for the bundles `missing`; None, and no trace in the view, if there is no way now. `taken` are the nodes of the
    others."""
    wanted = [(index, spec.bundles[index]) for index in missing]
    match spec.strategy:
        case "STRICT_PACK":
            return _together(view, wanted, taken, spec.target, rng)
        case "STRICT_SPREAD":
            return _apart(view, wanted, taken)
        case "SPREAD":
            return _one_by_one(view, wanted, taken, spec.target, rng, packed=False)
        case _:
            if not taken:
                placed = _together(view, wanted, taken, spec.target, rng)
                if placed is not None:
                    return placed
            return _one_by_one(view, wanted, taken, spec.target, rng, packed=True)


def undo(view: View, placed: Iterable[Placed]) -> None:
    """Take the deductions back."""
    for _, _, deduction in placed:
        view.settle(deduction, 0)


def _together(
    view: View, wanted: Wanted, taken: Collection[bytes], target: bytes, rng: Random
) -> list[Placed] | None:
    amounts, selector = _sum(bundle for _, bundle in wanted)
    if taken:
        chosen = next(iter(taken)) if len(taken) == 1 else b""
        node = view.get(chosen)
        if node is None or not _fits(node, Bundle(amounts, selector)):
            return None
    else:
        preferred = view.get(target)
        if preferred is not None and _fits(preferred, Bundle(amounts, selector)):
            node = preferred
        else:
            node = view.candidates(amounts, selector).with_room(PACK, rng)
    if node is None:
        return None
    return [_deduct(view, index, node, bundle) for index, bundle in wanted]


def _one_by_one(
    view: View,
    wanted: Wanted,
    taken: Collection[bytes],
    target: bytes,
    rng: Random,
    *,
    packed: bool,
) -> list[Placed] | None:
    placed: list[Placed] = []
    # An ordered set; the target is tried as if it had one of them already.
    used = dict.fromkeys([*([target] if target and packed else []), *taken])
    for index, bundle in sorted(wanted, key=_largest_first):
        found: Node | None = None
        index_of = view.candidates(bundle.resources, bundle.selector)
        if packed:
            nodes = (view.get(node_id) for node_id in used)
            found = next((node for node in nodes if node and _fits(node, bundle)), None)
            found = found or index_of.with_room(PACK, rng)
        else:
            found = index_of.with_room(SPREAD, rng, used) or index_of.with_room(SPREAD, rng)
        if found is None:
            undo(view, placed)
            return None
        used[found.node_id] = None
        placed.append(_deduct(view, index, found, bundle))
    return placed


def _apart(view: View, wanted: Wanted, taken: Collection[bytes]) -> list[Placed] | None:
    def roomy(bundle: Bundle) -> Iterable[Node]:
        index = view.candidates(bundle.resources, bundle.selector)
        return index.roomy(SPREAD, len(wanted) + len(taken))

    matched = _match(wanted, roomy, taken)
    if matched is None:
        return None
    return [_deduct(view, index, matched[index], bundle) for index, bundle in wanted]


def _match(
    wanted: Wanted, nodes_for: Callable[[Bundle], Iterable[Node]], taken: Collection[bytes]
) -> dict[int, Node] | None:
    """A node for each bundle, no node twice, by augmenting paths; None if there is no way."""
    kinds: dict[Bundle, list[Node]] = {}
    for _, bundle in wanted:
        if bundle not in kinds:
            kinds[bundle] = [node for node in nodes_for(bundle) if node.node_id not in taken]
    bundles = dict(wanted)
    holder: dict[bytes, int] = {}
    has: dict[int, Node] = {}
    for first in bundles:
        # Breadth first from the bundle that has none, over nodes that others have, to a node that nobody has.
        came_by: dict[bytes, tuple[int, Node]] = {}
        queue = deque([first])
        free: Node | None = None
        while queue and free is None:
            index = queue.popleft()
            for node in kinds[bundles[index]]:
                if node.node_id in came_by:
                    continue
                came_by[node.node_id] = (index, node)
                if node.node_id not in holder:
                    free = node
                    break
                queue.append(holder[node.node_id])
        if free is None:
            return None
        while True:
            index, node = came_by[free.node_id]
            before = has.get(index)
            holder[node.node_id] = index
            has[index] = node
            if before is None:
                break
            free = before
    return has


def _fits(node: Node, bundle: Bundle) -> bool:
    return (
        not node.row.draining
        and node.has_room(bundle.resources)
        and matches(node.row.labels, bundle.selector)
    )


def _deduct(view: View, index: int, node: Node, bundle: Bundle) -> Placed:
    return Placed(index, node.node_id, view.deduct(node.node_id, bundle.resources))


def _largest_first(item: tuple[int, Bundle]) -> tuple[int, int, int]:
    index, bundle = item
    return -len(bundle.resources), -sum(amount for _, amount in bundle.resources), index


def _sum(bundles: Iterable[Bundle]) -> tuple[Amounts, Selector]:
    amounts: dict[str, int] = {}
    terms: set[LabelTerm] = set()
    for bundle in bundles:
        terms.update(bundle.selector)
        for name, amount in bundle.resources:
            amounts[name] = amounts.get(name, 0) + amount
    selector = tuple(sorted(terms, key=lambda term: (term.key, term.op, term.values)))
    return tuple(sorted(amounts.items())), selector


# --- why not --------------------------------------------------------------------------------------------------------


def why_impossible(view: View, spec: GroupSpec, placed: Mapping[int, bytes]) -> str:
    """Why the cluster could not hold a group even if it were idle, and what would help; "" if it could, as far as this tells: for PACK
    and SPREAD each bundle is looked at alone."""
    for index, bundle in enumerate(spec.bundles):
        if index not in placed and not len(view.candidates(bundle.resources, bundle.selector)):
            return f"bundle {index}: " + why_no_node(view, bundle.resources, (bundle.selector,))
    if spec.strategy == "STRICT_PACK":
        amounts, selector = _sum(spec.bundles)
        if not len(view.candidates(amounts, selector)):
            return (
                f"its {len(spec.bundles)} bundles are to be on one node (STRICT_PACK), and together "
                + why_no_node(view, amounts, (selector,)).replace("it needs", "they need", 1)
            )
    if spec.strategy == "STRICT_SPREAD":
        wanted = [
            (index, bundle) for index, bundle in enumerate(spec.bundles) if index not in placed
        ]

        def able(bundle: Bundle) -> Iterable[Node]:
            index = view.candidates(bundle.resources, bundle.selector)
            return index.able(len(spec.bundles))

        if _match(wanted, able, set(placed.values())) is None:
            needs = amounts_text(spec.bundles[0].resources)
            return (
                f"its {len(spec.bundles)} bundles are to be on as many nodes (STRICT_SPREAD; the first needs {needs}), and of the "
                f"{len(view)} nodes not enough could hold one each. It waits until more nodes have joined; or use SPREAD"
            )
    return ""
