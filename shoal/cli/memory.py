"""`shoal memory`: every live object of a cluster, what keeps it alive, and what the stores of the nodes hold.

The same answers as of `shoal.util.memory`, as tables or as JSON. What was left out, and how to see it, goes to standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import click

from shoal.cli.looking import FORMAT, TIMEOUT, asking, write_table
from shoal.cli.reaching import of_cluster
from shoal.core.byte_amounts import bytes_text
from shoal.util.memory import GROUPINGS, MemoryReport, memory_report
from shoal.util.records import MOST, MemoryGroup, MemoryObject, NodeMemory

_MOST_SITES: Final = 20
"""Places in the program that are shown unless it is asked for them."""

# As Ray's command calls them; what is meant, and shown, is KiB and so on.
_UNITS: Final = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}

_SORTINGS: Final[dict[str, Callable[[MemoryObject], Any]]] = {
    "size": lambda one: -one.size,
    "age": lambda one: -(one.age_s or 0),
    "references": lambda one: -len(one.references),
    "type": lambda one: one.reference_type,
    "pid": lambda one: one.owner_pid or 0,
}

# As programs and fingers know them from elsewhere.
_ALIASES: Final = {
    "object_size": "size",
    "reference_type": "type",
    "node_address": "node",
    "stack_trace": "call-site",
    "call_site": "call-site",
}


class _Choice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2 only
    """One of some words, in any case, or another name of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).lower()
        return super().convert(_ALIASES.get(text, text), param, ctx)


@click.command()
@click.option(
    "--sort-by", type=_Choice([*_SORTINGS]), default="size", show_default=True, help="What first."
)
@click.option("--group-by", type=_Choice([*GROUPINGS]), help="Sum up, and list by groups.")
@click.option(
    "--units",
    type=click.Choice(["auto", *_UNITS], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Of sizes.",
)
@click.option("--stats-only", is_flag=True, help="Only sums: nodes and groups.")
@click.option(
    "-n",
    "--num-entries",
    type=click.IntRange(1, MOST),
    default=100,
    show_default=True,
    help="Objects shown at most; sums count all.",
)
@FORMAT
@TIMEOUT
@of_cluster
def memory(
    sort_by: str,
    group_by: str | None,
    units: str,
    stats_only: bool,
    num_entries: int,
    format_: str,
    timeout: float,
    **cluster: str | None,
) -> None:
    """Show the live objects of a cluster: their sizes, where they are, what kind of references keep them alive in which processes, and why
    they cannot be freed; what the store of each node holds; and memory that leaks."""
    with asking(timeout, cluster) as questions:
        report = memory_report(questions)
    report.objects.sort(key=_SORTINGS[sort_by])
    missing = report.more + max(0, len(report.objects) - num_entries)
    del report.objects[num_entries:]
    if format_ == "json":
        click.echo(json.dumps(_as_json(report, group_by, missing, stats_only), indent=2))
    else:
        _Writer(report, units).write(group_by, stats_only)
    if missing and not stats_only:
        click.echo(
            f"note: {missing:,} more objects are not shown, only counted: -n shows up to {MOST:,}, the largest of all",
            err=True,
        )
    if report.not_compared:
        click.echo(
            f"note: {report.not_compared:,} blocks were too many to be looked at for leaks",
            err=True,
        )
    if report.silent:
        click.echo(
            f"note: no answer in time from {', '.join(report.silent)}: a longer --timeout may help",
            err=True,
        )


def _as_json(
    report: MemoryReport, group_by: str | None, missing: int, stats_only: bool
) -> dict[str, Any]:
    found = report.asdict() | {"more": missing}
    if stats_only:
        del found["objects"]
    if group_by is not None:
        found["groups"] = [group.asdict() for group in report.groups(group_by)]
    return found


class _Writer:
    """Writes a report as tables."""

    def __init__(self, report: MemoryReport, units: str) -> None:
        self._report = report
        self._unit = _UNITS.get(units.upper(), 0)
        self._unit_name = units.upper()

    def write(self, group_by: str | None, stats_only: bool) -> None:
        """All of it."""
        report = self._report
        click.echo("Object stores of the nodes:")
        _table([self._node(node) for node in report.nodes])
        leaked = [block for block in report.blocks if block.kind == "LEAKED"]
        click.echo(
            f"\n{report.count:,} objects and handles of actors, {self._size(report.size)}"
            + (f"; {len(leaked):,} blocks leak" if leaked else "")
        )
        if group_by is None:
            if any(one.call_site for one in report.objects):
                click.echo("\nBy the place in the program that made them:")
                groups = report.groups("call-site")
                _table([self._group(group) for group in groups[:_MOST_SITES]])
                if len(groups) > _MOST_SITES:
                    more = len(groups) - _MOST_SITES
                    click.echo(f"… and {more:,} more: --group-by=call-site shows them")
            if not stats_only:
                self._objects(report.objects, "Objects")
        else:
            for group in report.groups(group_by):
                self._one_group(group, group_by, stats_only)
        if report.blocks and not stats_only:
            click.echo("\nMemory of no object:")
            _table(
                [
                    {
                        "kind": block.kind,
                        "size": self._size(block.size),
                        "node": (block.node_id or "")[:8],
                        "block": block.block,
                        "why": block.why,
                    }
                    for block in report.blocks
                ]
            )

    def _one_group(self, group: MemoryGroup, by: str, stats_only: bool) -> None:
        click.echo(f"\n{by} {group.group}")
        line = self._group(group)
        del line["group"]
        _table([line])
        if not stats_only:
            report = self._report
            members = [one for one in report.objects if report.group_of(one, by) == group.group]
            self._objects(members, "")

    def _objects(self, objects: list[MemoryObject], title: str) -> None:
        if not objects:
            return
        click.echo(f"\n{title}:" if title else "")
        dated = any(one.age_s is not None for one in objects)
        sited = any(one.call_site for one in objects)
        rows = []
        for one in objects:
            owner = f"{one.owner_type or 'gone'} {one.owner_pid or one.owner}"
            row: dict[str, Any] = {
                "object": one.object_id,
                "size": self._size(one.size),
                "where": one.location,
                "reference": one.reference_type,
                "owner": owner,
                "nodes": ", ".join(node[:8] for node in one.nodes),
            }
            if dated:
                row["age"] = "" if one.age_s is None else f"{one.age_s:.1f} s"
            if sited:
                row["call site"] = one.call_site
            rows.append({**row, "why it is there": one.why})
        _table(rows)

    def _node(self, node: NodeMemory) -> dict[str, Any]:
        found: dict[str, Any] = {"node": f"{node.node_id[:8]} {node.node_name}".rstrip()}
        for column in ("capacity", *_COLUMNS, "inline"):
            found[column.replace("_", " ")] = self._size(getattr(node, column))
        if node.leaked:
            found["leaked"] = self._size(node.leaked)
        return found

    def _group(self, group: MemoryGroup) -> dict[str, Any]:
        types = sorted(group.types.items(), key=lambda item: -item[1])
        return {
            "group": group.group,
            "count": f"{group.count:,}",
            "size": self._size(group.size),
            "stored": self._size(group.stored),
            "inline": self._size(group.inline),
            "types": ", ".join(f"{kind} {count:,}" for kind, count in types),
        }

    def _size(self, size: int) -> str:
        if size < 0:
            return "-"
        if not self._unit:
            return bytes_text(size)
        if self._unit == 1:
            return f"{size:,} B"
        return f"{size / self._unit:,.3f} {self._unit_name}"


_COLUMNS: Final = (
    "objects",
    "copies",
    "freed_in_view",
    "idle",
    "reserved",
    "left_by_ended",
    "free",
    "on_disk",
)


def _table(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows:
        write_table(columns, [{column: row.get(column) for column in columns} for row in rows])
