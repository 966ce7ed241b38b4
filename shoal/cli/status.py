"""`shoal status`: what a cluster has, what of it is in use, what waits, and how the storage is."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import click

from shoal.cli.failures import told
from shoal.cli.reaching import of_cluster, reach
from shoal.core.byte_amounts import bytes_text
from shoal.messages.control import ClusterStatus, StatusOfCluster
from shoal.messages.node import UNIT, NodeRow
from shoal.messages.placement import ViewRow

_BYTES = ("memory", "object_store_memory")


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Each node by itself.")
@of_cluster
def status(verbose: bool, **cluster: str | None) -> None:
    """Show a cluster: its nodes, what they have and what is in use, what waits, and its storage."""
    with told(), reach(**cluster) as (place, client):  # type: ignore[arg-type]  # the options of `of_cluster`
        found: StatusOfCluster = client.ask(ClusterStatus())
    _show(place, found, verbose)


def _show(place: str, found: StatusOfCluster, verbose: bool) -> None:
    alive = [row for row in found.nodes if row.alive]
    dead = [row for row in found.nodes if not row.alive]
    click.echo(f"Cluster {found.name!r} at {place}, shoal {found.version}")
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
    queued = sum(view.waiting for view in found.views)
    click.echo(f"Requests for workers that wait for resources in use: {queued}")
    if not found.waiting:
        click.echo("No actor waits for resources that no node has.")
        return
    click.echo("Actors that wait for what no node has:")
    for line in found.waiting:
        click.echo(f"    {line}")


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
        if view.waiting:
            click.echo(f"    {view.waiting} requests for workers wait")
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
    return bytes_text(units / UNIT) if name in _BYTES else f"{units / UNIT:g}"
