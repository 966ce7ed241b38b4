"""From samples to figures, ratios and verdicts.  Pure.

The figure of a row is the median of all samples of all rounds; its spread is their smallest and
largest.  The ratio is the quotient of two medians, turned so that more than 1 means that shoal
is better.  A row whose measurement failed even once is an error, never a pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bench.measure import Samples
from bench.rows import Better, Row


class Verdict(Enum):
    PASS = "pass"
    MISS = "miss"
    ERROR = "error"
    OPEN = "not compared"
    """The run left out shoal or the rival, so there is nothing to judge."""


@dataclass(slots=True)
class Figure:
    """What one peer did in one row."""

    values: list[float] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, samples: Samples) -> None:
        self.values.extend(samples.values)
        for name, value in samples.beside.items():
            self.beside.setdefault(name, []).append(value)

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "values": self.values,
            "beside": {name: statistics.median(seen) for name, seen in self.beside.items()},
            "errors": self.errors,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the finished table."""

    row: Row
    figures: Mapping[str, Figure]

    @property
    def ratio(self) -> float | None:
        """How many times better than the rival shoal is."""
        if self.row.target.rival is None:
            return None
        shoal = self._median("shoal")
        rival = self._median(self.row.target.rival)
        if not shoal or not rival:
            return None
        return shoal / rival if self.row.better is Better.MORE else rival / shoal

    @property
    def verdict(self) -> Verdict:
        if any(figure.errors for figure in self.figures.values()):
            return Verdict.ERROR
        target = self.row.target
        if target.ceiling is not None:
            median = self._median("shoal")
            return _judge(None if median is None else median <= target.ceiling)
        ratio = self.ratio
        return _judge(None if ratio is None or target.ratio is None else ratio >= target.ratio)

    def _median(self, peer: str) -> float | None:
        figure = self.figures.get(peer)
        return None if figure is None else figure.median

    def to_json(self) -> dict[str, Any]:
        row = self.row
        return {
            "name": row.name,
            "title": row.title,
            "unit": row.unit,
            "better": row.better.value,
            "target": {
                "ratio": row.target.ratio,
                "rival": row.target.rival,
                "ceiling": row.target.ceiling,
            },
            "ratio": self.ratio,
            "verdict": self.verdict.value,
            "figures": {peer: figure.to_json() for peer, figure in self.figures.items()},
        }


def _judge(reached: bool | None) -> Verdict:
    if reached is None:
        return Verdict.OPEN
    return Verdict.PASS if reached else Verdict.MISS


class Scoreboard:
    """Collects samples and errors while a run goes on."""

    def __init__(self, rows: Sequence[Row], peers: Collection[str]) -> None:
        self._rows = rows
        self._figures: dict[str, dict[str, Figure]] = {
            row.name: {peer: Figure() for peer in row.peers if peer in peers} for row in rows
        }

    def measured(self, row: Row, peer: str, samples: Samples) -> None:
        self._figures[row.name][peer].add(samples)

    def failed(self, row: Row, peer: str, error: str) -> None:
        self._figures[row.name][peer].errors.append(error)

    def has_failed(self, row: Row, peer: str) -> bool:
        return bool(self._figures[row.name][peer].errors)

    def results(self) -> list[Result]:
        return [Result(row, self._figures[row.name]) for row in self._rows]
