"""The finished table: on the terminal, as JSON and as Markdown.

Guarantees: all three are made from the same results; files are replaced whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.launch import PeerFacts
from bench.measure import Plan
from bench.results import Figure, Result, Verdict

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
_STYLES = {
    Verdict.PASS: "green",
    Verdict.MISS: "bold red",
    Verdict.ERROR: "bold magenta",
    Verdict.OPEN: "dim",
}
_COLUMNS = ("row", "unit", "shoal", "rival", "ratio", "target", "verdict")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known at the end of a run."""

    machine: Mapping[str, Any]
    plan: Plan
    rounds: int
    peers: Mapping[str, PeerFacts]
    results: Sequence[Result]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "settings": {"rounds": self.rounds, **asdict(self.plan)},
            "peers": {name: asdict(facts) for name, facts in self.peers.items()},
            "summary": dict(self._counts()),
            "rows": [result.to_json() for result in self.results],
        }

    def _counts(self) -> Counter[str]:
        return Counter(result.verdict.value for result in self.results)

    def summary(self) -> str:
        counts = self._counts()
        return ", ".join(f"{counts[v.value]} {v.value}" for v in Verdict if counts[v.value])


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped: 0.0831, 4.27, 13,300."""
    if value is None:
        return "—"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def show(report: Report, console: Console) -> None:
    table = Table(title="shoal, measured", header_style="bold", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("row", "unit") else "right")
    for result in report.results:
        style = _STYLES[result.verdict]
        *cells, verdict = _cells(result)
        table.add_row(*cells, f"[{style}]{verdict}[/]")
    console.print(table)
    for heading, lines in _notes(report):
        console.print(f"[bold]{heading}[/]")
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False)
    console.print(f"[bold]{report.summary()}[/]")


def write(report: Report, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.md`` into the folder; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = folder / f"{stem}.json", folder / f"{stem}.md"
    _replace(as_json, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    _replace(as_markdown, markdown(report))
    return as_json, as_markdown


def markdown(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {facts.version or '?'}" for name, facts in report.peers.items())
    lines = f"""\
# Benchmark results

{machine["started"]}, commit {machine["commit"] or "unknown"}: {report.summary()}.

- Machine: {machine["cores"]} cores of {machine["cpu"]}, {machine["memory_gb"]} GB,
  {machine["system"]}; load {machine["load_before"]} before the run
- {machine["python"]}, numpy {machine["numpy"]}; {versions}
- {report.rounds} rounds, peers alternating; each figure is the median of all samples
  (smallest – largest)

| {" | ".join(_COLUMNS)} |
|---|---|{"---:|" * (len(_COLUMNS) - 2)}""".splitlines()
    for result in report.results:
        *cells, verdict = _cells(result)
        if result.verdict is not Verdict.PASS:
            verdict = f"**{verdict}**"
        lines.append("| " + " | ".join([*cells, verdict]) + " |")
    for heading, notes in _notes(report):
        lines += ["", f"## {heading}", ""]
        lines += [_markdown_item(note) for note in notes]
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> list[str]:
    row = result.row
    rival = row.target.rival
    ratio = result.ratio
    return [
        row.title,
        row.unit,
        _figure(result.figures.get("shoal")),
        f"{rival} {_figure(result.figures.get(rival))}" if rival else "",
        "" if ratio is None else f"{number(ratio)} ×",
        str(row.target),
        result.verdict.value,
    ]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "—"
    if not figure.values:
        return "failed" if figure.errors else "—"
    if len(figure.values) == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(min(figure.values))} – {number(max(figure.values))})"


def _notes(report: Report) -> Iterable[tuple[str, list[str]]]:
    beside = [
        f"{result.row.title}: {peer}, {name} {number(value)}"
        for result in report.results
        for peer, figure in result.figures.items()
        for name, value in figure.to_json()["beside"].items()
    ]
    if beside:
        yield "Beside the figures", beside
    # A peer that cannot start fails many rows in the same words; they are said once.
    errors: dict[tuple[str, str], list[str]] = {}
    for result in report.results:
        for peer, figure in result.figures.items():
            for error in figure.errors:
                errors.setdefault((peer, error), []).append(result.row.name)
    if errors:
        yield "Errors", [f"{peer}, {', '.join(n)}: {e}" for (peer, e), n in errors.items()]
    troubles = [
        f"{peer}: {trouble}" for peer, facts in report.peers.items() for trouble in facts.troubles
    ]
    if troubles:
        yield "Troubles outside the rows", troubles


def _markdown_item(note: str) -> str:
    first, *rest = note.splitlines()
    if not rest:
        return f"- {first}"
    return "\n".join([f"- {first}", "", "  ```text", *(f"  {line}" for line in rest), "  ```"])


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
