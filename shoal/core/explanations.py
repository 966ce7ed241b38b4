"""Why something waits, in sentences for users: what it needs, what there is, and what would help."""

from __future__ import annotations

from shoal.core.resources import CPU, Amounts, NodeResources, amount_text, amounts_text


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
    text = amount_text(wanted)
    if name in {CPU, "GPU"}:
        return f"num_{name.lower()}s={text}"
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
