"""`shoal status`: what a cluster has, what of it is in use, what waits, and how the storage is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import click

from shoal.cli.failures import told
from shoal.cli.reaching import of_cluster, reach
from shoal.core.byte_amounts import bytes_text
from shoal.core.demands import BYTES, Demands, demand_text
from shoal.messages.control import ClusterStatus, StatusOfCluster
from shoal.messages.node import UNIT, NodeRow
from shoal.messages.placement import ViewRow
from shoal.messages.state import TASKS, AskDemands, DemandRow, Findings
from shoal.runtime.asking import Questions
from shoal.runtime.joining import Respondent

_SHOWN: Final = 20
"""Different demands that are shown, and asked for at each node."""

_SHOWN_ALL: Final = 200
"""The same with -v."""

_PATIENCE_S: Final = 10.0


@click.command()
@click.option(
    "-v", "--verbose", is_flag=True, help="Each node by itself, and where each demand waits."
)
@of_cluster
def status(verbose: bool, **cluster: str | None) -> None:
    """Show a cluster: its nodes, what they have and what is in use, what waits, and its storage."""
    with told(), reach(**cluster) as (whom, client):  # type: ignore[arg-type]  # the options of `of_cluster`
        found: StatusOfCluster = client.ask(ClusterStatus())
        question = AskDemands(_SHOWN_ALL if verbose else _SHOWN)
        at_nodes = Questions(client, _PATIENCE_S).survey(question)
    _show(whom, found, at_nodes, verbose)


def _show(whom: Respondent, found: StatusOfCluster, at_nodes: Findings, verbose: bool) -> None:
    alive = [row for row in found.nodes if row.alive]
    dead = [row for row in found.nodes if not row.alive]
    if whom.pid:
        click.echo(f"Session of the program with pid {whom.pid}, shoal {found.version}")
    else:
        click.echo(f"Cluster {found.name!r} at {whom.place}, shoal {found.version}")
        click.echo(f"Storage: {found.storage}: {_state(found)}")
    click.echo(f"Jobs: {found.jobs}, actors: {found.actors}")
    click.echo(f"Nodes: {len(alive)} alive" + (f", {len(dead)} dead lately" if dead else ""))
    click.echo("")
    click.echo("Resources in use (of all there are):")
    for line in _resources(alive):
        click.echo(f"    {line}")
    click.echo(_store_line(found.views))
    if verbose:
        views = {view.node_id: view for view in found.views}
        for row in alive:
            _show_node(row, views.get(row.node_id))
        for row in dead:
            click.echo(f"\nNode {row.node_id.hex()[:8]} {row.name} is dead: it {row.cause}")
    click.echo("")
    names = {row.node_id: f"{row.node_id.hex()[:8]} {row.name}".rstrip() for row in found.nodes}
    for line in _demands([*at_nodes.demands, *found.demands], names, verbose):
        click.echo(line)
    for who in at_nodes.silent:
        click.echo(f"note: no answer in time from {who}: what waits there is not shown", err=True)
    if verbose and found.waiting:
        click.echo("Actors that no node could take:")
        for line in found.waiting:
            click.echo(f"    {line}")


def _demands(rows: list[DemandRow], names: dict[bytes, str], verbose: bool) -> list[str]:
    """What is demanded and not served, the most frequent first; with `verbose`, where and since when."""
    if not rows:
        return ["Nothing waits for resources."]
    total = Demands()
    for row in rows:
        total.add_row(row)
    lines = ["Demands that wait for resources:"]
    for demand in total.rows(_SHOWN_ALL if verbose else _SHOWN):
        if not demand.kind:
            lines.append(f"    … and {demand.count:,} more" + ("" if verbose else " (see -v)"))
            continue
        why = ", more than any node has" if demand.nowhere else ""
        lines.append(f"    {demand_text(demand)}: {_count(demand)}{why}")
        if verbose:
            # The control store's, which are at no node, tell by themselves since when.
            same = [row for row in rows if _same(row, demand)]
            same.sort(key=lambda row: -row.count)
            lines += [f"        {_where(row, names)}" for row in same]
    return lines


def _same(row: DemandRow, demand: DemandRow) -> bool:
    return (row.kind, row.bundles, row.where, row.nowhere) == (
        demand.kind,
        demand.bundles,
        demand.where,
        demand.nowhere,
    )


def _count(row: DemandRow) -> str:
    # Whoever has more tasks asks for some workers at a time.
    more = "+" if row.kind == TASKS else ""
    plural = "" if row.count == 1 and not more else "s"
    return f"{row.count:,}{more} {row.kind}{plural}"


def _where(row: DemandRow, names: dict[bytes, str]) -> str:
    at = f"at node {names.get(row.node_id, row.node_id.hex()[:8])}" if row.node_id else "at no node"
    seconds = max(0, time.time_ns() - row.since_ns) / 1e9
    oldest = f" ({row.name})" if row.name else ""
    return f"{_count(row)} {at}; the oldest{oldest} has waited {seconds:,.0f} s"


def _state(found: StatusOfCluster) -> str:
    since = datetime.fromtimestamp(found.storage_since_ns / 1e9).astimezone()
    return f"{found.storage_state} (since {since:%Y-%m-%d %H:%M:%S})"


def _show_node(row: NodeRow, view: ViewRow | None) -> None:
    click.echo(
        f"\nNode {row.node_id.hex()[:8]} {row.name} at {row.place} ({row.hostname}, pid {row.pid})"
    )
    for line in _resources([row]):
        click.echo(f"    {line}")
    if view is not None:
        click.echo(f"    {_store_line([view])}")
    # By its id a node can be asked for, too; that is said already.
    own = {name: value for name, value in row.labels.items() if value != row.node_id.hex()}
    if own:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(own.items()))
        click.echo(f"    labels: {labels}")


def _store_line(views: Iterable[ViewRow]) -> str:
    """How full the object stores are, together."""
    stores = [view.store for view in views if view.store is not None]
    used = bytes_text(sum(store.used for store in stores))
    line = f"Object store: {used} / {bytes_text(sum(store.capacity for store in stores))}"
    on_disk = sum(store.on_disk for store in stores)
    written, spent_ms = (
        sum(store.written for store in stores),
        sum(store.spent_ms for store in stores),
    )
    if on_disk or written:
        line += f", spilled {bytes_text(on_disk)} on disk"
    if written:
        # Added up over processes that write at the same time: what one of them gets.
        speed = bytes_text(written / max(1, spent_ms) * 1_000)
        line += f" ({bytes_text(written)} written in all, {speed}/s)"
    return line


def _resources(rows: Iterable[NodeRow]) -> list[str]:
    """A line for each resource: how much is in use, of how much."""
    total: dict[str, int] = {}
    free: dict[str, int] = {}
    for row in rows:
        for name, amount in row.total.items():
            # Each node has one of its own, by which it can be asked for.
            if not name.startswith("node:"):
                total[name] = total.get(name, 0) + amount
                free[name] = free.get(name, 0) + row.available.get(name, 0)
    return [
        f"{_amount(name, total[name] - free[name])} / {_amount(name, total[name])} {name}"
        for name in sorted(total, key=lambda name: (name != "CPU", name != "GPU", name))
    ]


def _amount(name: str, units: int) -> str:
    return bytes_text(units / UNIT) if name in BYTES else f"{units / UNIT:g}"
