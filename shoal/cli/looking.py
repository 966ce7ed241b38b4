"""`shoal list`, `shoal get`, `shoal summary`, `shoal why`: what there is in a cluster, and why something waits.

The same answers as of `shoal.util.state`, as tables or as JSON. Notes (what was left out, and how to see it) go to standard error.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import click

from shoal.cli.failures import Failure, told
from shoal.cli.reaching import of_cluster, reach
from shoal.runtime.asking import Questions
from shoal.util import records, summaries, tables
from shoal.util.records import MOST, Found, Record
from shoal.util.state import chosen
from shoal.util.why import explain


class _Kind(NamedTuple):
    """Something that can be listed: its record, the column with its id, and how it is asked for."""

    record: type[Record]
    id: str
    find: Callable[[Questions], Found[Any]]


KINDS: Final[dict[str, _Kind]] = {
    "actors": _Kind(records.ActorState, "actor_id", tables.actor_states),
    "jobs": _Kind(records.JobState, "job_id", tables.job_states),
    "nodes": _Kind(records.NodeState, "node_id", tables.node_states),
    "objects": _Kind(records.ObjectState, "object_id", tables.object_states),
    "placement-groups": _Kind(
        records.PlacementGroupState, "placement_group_id", tables.placement_group_states
    ),
    "tasks": _Kind(records.TaskState, "task_id", tables.task_states),
    "workers": _Kind(records.WorkerState, "worker_id", tables.worker_states),
}

FORMAT: Final = click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to write it.",
)
TIMEOUT: Final = click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for answers.",
)


@contextmanager
def asking(timeout: float, cluster: dict[str, str | None]) -> Iterator[Questions]:
    """Ask a cluster; what is worth a warning goes to standard error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with told(), reach(**cluster) as (_, client):  # type: ignore[arg-type]  # the options of `of_cluster`
            yield Questions(client, timeout)
    for warning in said:
        click.echo(f"note: {warning.message}", err=True)


def _kind(name: str) -> _Kind:
    """A kind, in the plural or singular, with - or _."""
    name = name.lower().replace("_", "-")
    kind = KINDS.get(name) or KINDS.get(f"{name}s")
    if kind is None:
        raise click.BadParameter(f"{name!r} is none of {', '.join(KINDS)}", param_hint="'KIND'")
    return kind


def _filters(texts: Iterable[str]) -> list[tuple[str, str, str]]:
    found = []
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise click.BadParameter(
                f"{text!r} is not a filter: that is COLUMN=VALUE or COLUMN!=VALUE",
                param_hint="'--filter'",
            )
        found.append(
            (key.removesuffix("!").strip(), "!=" if key.endswith("!") else "=", value.strip())
        )
    return found


# --- commands -------------------------------------------------------------------------------------------------------


@click.command("list")
@click.argument("kind", metavar="KIND")
@click.option(
    "--filter", "filters", multiple=True, metavar="K=V", help="Only those; K!=V: all others."
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST),
    default=100,
    show_default=True,
    help="So many at most.",
)
@click.option("--detail", is_flag=True, help="All columns.")
@FORMAT
@TIMEOUT
@of_cluster
def list_(
    kind: str,
    filters: tuple[str, ...],
    limit: int,
    detail: bool,
    format_: str,
    timeout: float,
    **cluster: str | None,
) -> None:
    """List what there is: actors, jobs, nodes, objects, placement-groups, tasks, workers."""
    chosen_kind, wanted = _kind(kind), _filters(filters)
    with asking(timeout, cluster) as questions:
        found = chosen_kind.find(questions)
        states = chosen(chosen_kind.record, found, wanted, limit, detail, must=False)
    record = chosen_kind.record
    columns = record.columns() if detail else record.short_columns()
    rows = [{column: state[column] for column in columns} for state in states]
    if format_ == "json":
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        write_table(columns, rows)
    else:
        click.echo("There are none" + (" of which that is so." if wanted else "."))


@click.command()
@click.argument("kind", metavar="KIND")
@click.argument("id_", metavar="ID")
@FORMAT
@TIMEOUT
@of_cluster
def get(kind: str, id_: str, format_: str, timeout: float, **cluster: str | None) -> None:
    """Show all of one actor, job, node, object, placement-group, task or worker. The first digits of its id are enough."""
    one = _kind(kind)
    with asking(timeout, cluster) as questions:
        states = chosen(one.record, one.find(questions), (), MOST, detail=True, must=False)
    begins = id_.strip().lower()
    fitting = [state for state in states if (state[one.id] or "").startswith(begins)]
    ids = {state[one.id] for state in fitting}
    if not fitting:
        raise Failure(
            f"no {kind.rstrip('s')} has an id that begins with {begins}: `shoal list {kind.rstrip('s')}s` shows those that are remembered"
        )
    if len(ids) > 1:
        some = ", ".join(sorted(ids)[:5])
        raise Failure(
            f"{len(ids)} ids begin with {begins}: {some}{' …' if len(ids) > 5 else ''}. Give more digits"
        )
    if format_ == "json":
        click.echo(json.dumps([state.asdict() for state in fitting], indent=2))
        return
    width = max(map(len, one.record.columns()))
    for number, state in enumerate(fitting):
        if number:
            click.echo("")
        for column, value in state.asdict().items():
            click.echo(f"{column:{width}}  {_text(value)}")


@click.command()
@click.argument("kind", type=click.Choice(["tasks", "actors", "objects"]))
@FORMAT
@TIMEOUT
@of_cluster
def summary(kind: str, format_: str, timeout: float, **cluster: str | None) -> None:
    """Count tasks, actors or objects by name and state."""
    summarize: dict[str, Callable[[Any], dict[str, Any]]] = {
        "tasks": summaries.task_summary,
        "actors": summaries.actor_summary,
        "objects": summaries.object_summary,
    }
    one = KINDS[kind]
    with asking(timeout, cluster) as questions:
        # As many as there are: only what is shown is limited.
        states = chosen(one.record, one.find(questions), (), MOST, detail=True, must=False)
    found = summarize[kind](states)
    if format_ == "json":
        click.echo(json.dumps(found, indent=2))
        return
    rows = []
    for group in found["summary"].values():
        counts = ", ".join(f"{state} {count}" for state, count in group["state_counts"].items())
        shown = {key: value for key, value in group.items() if key != "state_counts"}
        rows.append({**shown, "states": counts})
    if rows:
        write_table(list(rows[0]), rows)
    else:
        click.echo("There are none.")


@click.command()
@click.argument("id_", metavar="ID")
@TIMEOUT
@of_cluster
def why(id_: str, timeout: float, **cluster: str | None) -> None:
    """Why a task, actor or placement group waits: for what, since when, how many are ahead, and who has it. The first digits of the id
    are enough; that of an object stands for the task that makes it."""
    with asking(timeout, cluster) as questions:
        found = explain(questions, id_)
    click.echo(str(found))


# --- writing --------------------------------------------------------------------------------------------------------


def write_table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write rows under the names of their columns."""
    cells = [[column.upper() for column in columns]]
    cells += [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        text = "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        click.echo(text.rstrip())


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "-"
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value)
