"""Why something waits, in sentences for users: what it needs, what there is, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from shoal.core.labels import matches, selector_text
from shoal.core.resources import CPU, GPU, Amounts, NodeResources, amount_text, amounts_text
from shoal.messages.placement import Selector, ViewRow

if TYPE_CHECKING:
    from shoal.core.candidates import Node

_MEMORY: Final = "memory"


def why_infeasible(resources: NodeResources, amounts: Amounts) -> str:
    """Why a node could not serve a demand even if it were idle, and what to change."""
    lacks = []
    for name, wanted, total in resources.lacking(amounts):
        has = f"has {amount_text(total)}" if total else "has none"
        lacks.append((name, wanted, f"{name} {amount_text(wanted)} where this node {has}"))
    needs = " and ".join(text for _, _, text in lacks)
    offers = " and ".join(_offer(name, wanted) for name, wanted, _ in lacks)
    return (
        f"it needs {needs}. It waits until a node has that much: start shoal with {offers}, "
        "or ask for less in the options of the task or actor."
    )


def _offer(name: str, wanted: int) -> str:
    """How `shoal.init` is told that there is so much."""
    text = amount_text(wanted)
    if name in {CPU, GPU}:
        return f"num_{name.lower()}s={text}"
    if name == _MEMORY:
        return f"_memory={text}"
    return f"resources={{{name!r}: {text}}}"


def why_waiting(
    resources: NodeResources,
    amounts: Amounts,
    *,
    requests_before: int,
    leases: int,
    starting: int,
    most_workers: int,
) -> str:
    """Why a demand that the node can serve has not been served yet. `most_workers` is 0 while more may start."""
    parts = []
    for name, wanted, free in resources.missing(amounts):
        total = resources.total.get(name, 0)
        parts.append(
            f"{name} {amount_text(wanted)} is not free ({amount_text(max(0, free))} of {amount_text(total)} is)"
        )
    if not parts:
        if most_workers:
            parts.append(f"the node runs {most_workers} processes, as many as its limits allow")
        elif starting:
            parts.append("a worker is being started")
        else:
            parts.append("its turn has not come")
    text = f"it asks for {amounts_text(amounts)}; {', '.join(parts)}; {leases} leases are out"
    if requests_before:
        text += f", and {requests_before} older requests wait"
    return text + "."


# --- several nodes --------------------------------------------------------------------------------------------------


def how_to_start(amounts: Amounts) -> str:
    """The command that starts a node of the cluster with so much."""
    words = ["shoal start --address=HOST:PORT"]
    custom = []
    for name, amount in amounts:
        text = amount_text(amount)
        if name in {CPU, GPU}:
            words.append(f"--num-{name.lower()}s={text}")
        elif name == _MEMORY:
            words.append(f"--memory={text}")
        else:
            custom.append(f'"{name}": {text}')
    if custom:
        words.append(f"--resources='{{{', '.join(custom)}}}'")
    return " ".join(words)


def why_not_node(row: ViewRow, name: str, amounts: Amounts) -> str:
    """Why a node that a demand is tied to could never serve it."""
    if row.draining:
        return f"it may run on {name} only, which takes nothing new since it is about to leave."
    lacks = " and ".join(
        f"{resource} {amount_text(wanted)} where that node has {amount_text(row.total.get(resource, 0))}"
        for resource, wanted in amounts
        if wanted > row.total.get(resource, 0)
    )
    return (
        f"it may run on {name} only, and needs {lacks}. Let the affinity be soft, name another node, or ask for less in "
        "the options of the task or actor."
    )


def why_no_node(nodes: Iterable[Node], amounts: Amounts, choices: Sequence[Selector]) -> str:
    """Why no node of a cluster could serve a demand even if it were idle, and what to add."""
    rows = [node.row for node in nodes if not node.row.draining]
    allowed = [row for row in rows if any(matches(row.labels, choice) for choice in choices)]
    wanted = ", or else ".join(selector_text(choice) for choice in choices if choice)
    on = f" with the labels {wanted}" if wanted else ""
    advice = f"It waits until there is such a node: start one{on} (`{how_to_start(amounts)}`), or ask for less"
    if not rows:
        return f"there is no node that takes work. {advice}."
    if not allowed:
        have = (
            "the only node does not have"
            if len(rows) == 1
            else f"none of the {len(rows)} nodes has"
        )
        return f"{have} the labels {wanted}. {advice} in the options of the task or actor, or for other labels."
    alone = len(allowed) == 1
    nodes_text = f"the only node{on}" if alone else f"of the {len(allowed)} nodes{on} none"
    lacks = []
    for name, amount in amounts:
        most = max(row.total.get(name, 0) for row in allowed)
        if amount > most:
            has = f"has {'' if alone else 'more than '}{amount_text(most)}"
            if not most:
                has = "has none" if alone else "has any"
            lacks.append(f"{name} {amount_text(amount)}, and {nodes_text} {has}")
    if not lacks:
        lacks.append(f"{amounts_text(amounts)} together, and {nodes_text} has all of it")
    return f"it needs {'; '.join(lacks)}. {advice} in the options of the task or actor."
