"""What the samples say: figures of each kind of process, the files that they are written to, and whether all is well.

*Warm* is the time from a fifth of the load on: by then every table and every cache has its size. Growth while warm is the slope of a
straight line through the samples of a process that lived all the time, over the whole of that time; while idle it is the last sample of
the anonymous memory less the first.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.machine import facts
from tests.stress.week.cluster import Outcome
from tests.stress.week.sampling import Row

WARM: Final = 0.2
_MB: Final = 1_000_000


@dataclass(frozen=True)
class Process:
    """One that lived from before it was warm until the end, in bytes."""

    kind: str
    pid: int
    warm: int
    end: int
    grown_warm: int
    dropped: int
    idle: int
    grown_idle: int
    where_idle: dict[str, int]
    descriptors: tuple[int, int]
    threads: tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """Of the whole run."""

    done: dict[str, int]
    load_s: float
    processes: list[Process]
    seen: dict[str, int]
    peak_memory: int
    peak_disk: int
    last_memory: int
    last_disk: int

    def table(self) -> str:
        """For people."""
        done = ", ".join(f"{n:,} {name}" for name, n in self.done.items() if "held" not in name)
        stores = (
            f"shared memory: at most {self.peak_memory / _MB:.0f} MB, in the end {self.last_memory} bytes; "
            f"spilled: at most {self.peak_disk / _MB:.0f} MB, in the end {self.last_disk} bytes"
        )
        heads = ("warm", "end", "slope", "dropped", "idle")
        lines = [
            f"{self.load_s / 60:.1f} minutes of load: {done}",
            stores,
            "processes: " + ", ".join(f"{count} {kind}" for kind, count in self.seen.items()),
            "unique memory in MB (of those that lived all the time)",
            " " * 17 + " ".join(f"{head:>8}" for head in heads) + "  growth idle  files  threads",
        ]
        lines += [
            f"{one.kind:16} {one.warm / _MB:8.2f} {one.end / _MB:8.2f} {one.grown_warm / _MB:+8.2f} "
            f"{one.dropped / _MB:8.2f} {one.idle / _MB:8.2f} {one.grown_idle:+12,d}  "
            f"{one.descriptors[0]}→{one.descriptors[1]}  {one.threads[0]}→{one.threads[1]}"
            + (f"  {one.where_idle}" if one.where_idle else "")
            for one in self.processes
        ]
        return "\n".join(lines)


def figures(outcome: Outcome) -> Figures:
    """From all samples."""
    sampler = outcome.sampler
    assert sampler is not None
    of_process: dict[int, list[Row]] = defaultdict(list)
    for row in sampler.rows:
        of_process[row.pid].append(row)
    # Whether a worker is an actor is known somewhat later than that it lives.
    kinds = {pid: rows[-1].kind for pid, rows in of_process.items()}
    seen = Counter(kind.rstrip("0123456789 ") for kind in kinds.values())
    load = [stores.seconds for stores in sampler.stores if stores.phase == "load"]
    warm_from = load[0] + WARM * (load[-1] - load[0])
    processes = [
        one
        for pid, rows in of_process.items()
        if (one := _process(pid, kinds[pid], rows, warm_from, load[-1])) is not None
    ]
    return Figures(
        outcome.done,
        outcome.load_s,
        sorted(processes, key=lambda one: (one.kind, one.pid)),
        dict(sorted(seen.items())),
        max(stores.memory for stores in sampler.stores),
        max(stores.disk for stores in sampler.stores),
        sampler.stores[-1].memory,
        sampler.stores[-1].disk,
    )


def _process(
    pid: int, kind: str, rows: list[Row], warm_from: float, load_until: float
) -> Process | None:
    warm = [row for row in rows if row.phase == "load" and row.seconds >= warm_from]
    idle = [row for row in rows if row.phase == "idle"]
    if len(warm) < 4 or warm[0].seconds > warm_from + 0.2 * (load_until - warm_from):
        return None
    times = [row.seconds for row in warm]
    sizes = [row.usage.unique for row in warm]
    slope = statistics.linear_regression(times, sizes).slope
    first, last = (idle[0].usage, idle[-1].usage) if idle else (warm[-1].usage, warm[-1].usage)
    tenth = max(1, len(sizes) // 10)
    return Process(
        kind,
        pid,
        int(statistics.median(sizes[:tenth])),
        int(statistics.median(sizes[-tenth:])),
        int(slope * (times[-1] - times[0])),
        first.unique,
        last.unique,
        last.anonymous - first.anonymous,
        {
            name: size
            for name in first.mappings.keys() | last.mappings.keys()
            if (size := last.mappings.get(name, 0) - first.mappings.get(name, 0))
        },
        (warm[0].usage.descriptors, last.descriptors),
        (warm[0].usage.threads, last.threads),
    )


def verdict(outcome: Outcome, found: Figures) -> list[str]:
    """What is wrong; nothing if all is well."""
    problems = [f"left after the load: {what}" for what in outcome.left]
    problems += [f"left by the cluster: {leak}" for leak in outcome.leaks]
    problems += [
        f"grew while idle: {one.kind} (pid {one.pid}) by {one.grown_idle} bytes: {one.where_idle}"
        for one in found.processes
        if one.grown_idle > 0
    ]
    return problems


def write(outcome: Outcome, found: Figures, folder: Path) -> None:
    """The files that `__main__` names."""
    sampler = outcome.sampler
    assert sampler is not None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "processes.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            (
                "seconds",
                "phase",
                "pid",
                "kind",
                "unique",
                "anonymous",
                "objects",
                "files",
                "threads",
            )
        )
        for row in sampler.rows:
            use = row.usage
            what = row.pid, row.kind, use.unique, use.anonymous, use.objects
            counts = use.descriptors, use.threads
            rows.writerow((f"{row.seconds:.1f}", row.phase, *what, *counts))
    with (folder / "stores.csv").open("w", newline="", encoding="utf-8") as file:
        names = ("tasks", "calls", "objects", "bytes", "kills", "held_bytes")
        rows = csv.writer(file)
        sizes = ("memory", "memory_files", "disk", "disk_files", "session", "session_files")
        rows.writerow(("seconds", "phase", *sizes, *names))
        for one in sampler.stores:
            values = (getattr(one, size) for size in sizes)
            done = (one.done.get(name, 0) for name in names)
            rows.writerow((f"{one.seconds:.1f}", one.phase, *values, *done))
    summary: dict[str, Any] = {
        "machine": facts(),
        "plan": asdict(outcome.plan),
        **asdict(found),
        "left": outcome.left,
        "leaks": [str(leak) for leak in outcome.leaks],
    }
    (folder / "figures.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
