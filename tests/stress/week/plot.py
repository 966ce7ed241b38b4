"""A picture of the samples: `python -m tests.stress.week.plot FOLDER [FILE]`. Needs matplotlib, which `make install` has.

Four fields above one another, with time from left to right: unique memory of what lives all the time (drivers, daemons, control store), of
the processes that come and go (workers, actors, zygotes: the smallest, the median and the largest of those that live), what the stores
hold in memory and on disk, and what has been done. The shaded part on the right is the idle time.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

_MB: Final = 1_000_000
_MINUTE: Final = 60.0
_COLOURS: Final = {
    "driver": "tab:blue",
    "daemon": "tab:orange",
    "control store": "tab:green",
    "worker": "tab:purple",
    "keeper": "tab:brown",
    "borrower": "tab:red",
    "zygote": "tab:gray",
}
_LASTING: Final = ("driver", "daemon", "control store")
_CHANGING: Final = ("worker", "keeper", "borrower", "zygote")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of one of the files."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> int:
    if not 2 <= len(sys.argv) <= 3:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else folder / "week.svg"
    draw(read(folder / "processes.csv"), read(folder / "stores.csv"), target)
    print(target)
    return 0


def draw(processes: list[dict[str, str]], stores: list[dict[str, str]], target: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    # So that the same samples give the same file.
    mpl.rcParams["svg.hashsalt"] = "week"
    from matplotlib import pyplot as plt

    figure, fields = plt.subplots(4, 1, figsize=(10, 11), sharex=True, layout="constrained")
    _draw_lasting(fields[0], processes)
    _draw_changing(fields[1], processes)
    _draw_stores(fields[2], stores)
    _draw_done(fields[3], stores)
    idle = [float(row["seconds"]) / _MINUTE for row in stores if row["phase"] == "idle"]
    for field in fields:
        field.set_ylim(bottom=0)
        field.grid(alpha=0.3)
        field.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        if idle:
            field.axvspan(idle[0], idle[-1], color="black", alpha=0.06)
    fields[-1].set_xlabel("minutes")
    if target.suffix == ".svg":
        figure.savefig(target, metadata={"Date": None})
    else:
        figure.savefig(target, dpi=75, pil_kwargs={"optimize": True})


def _kind(row: dict[str, str]) -> str:
    return row["kind"].rstrip("0123456789 ")


def _draw_lasting(field: Any, rows: list[dict[str, str]]) -> None:
    lines: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        if _kind(row) in _LASTING:
            times, sizes = lines[_kind(row), row["pid"]]
            times.append(float(row["seconds"]) / _MINUTE)
            sizes.append(int(row["unique"]) / _MB)
    named: set[str] = set()
    for (kind, _), (times, sizes) in lines.items():
        label = None if kind in named else kind if kind == "control store" else f"{kind}s"
        field.plot(times, sizes, color=_COLOURS[kind], linewidth=1, label=label)
        named.add(kind)
    field.set_ylabel("MB of each")
    field.set_title("Unique memory of what lives all the time", loc="left", fontsize=10)


def _draw_changing(field: Any, rows: list[dict[str, str]]) -> None:
    for kind in _CHANGING:
        at: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if _kind(row) == kind:
                at[float(row["seconds"]) / _MINUTE].append(int(row["unique"]) / _MB)
        if not at:
            continue
        times = list(at)
        field.plot(
            times,
            [statistics.median(sizes) for sizes in at.values()],
            color=_COLOURS[kind],
            linewidth=1,
            label=f"{kind}s",
        )
        lowest, highest = [min(s) for s in at.values()], [max(s) for s in at.values()]
        field.fill_between(times, lowest, highest, color=_COLOURS[kind], alpha=0.15, linewidth=0)
    field.set_ylabel("MB, median and range")
    field.set_title("Unique memory of workers, actors and zygotes", loc="left", fontsize=10)


def _draw_stores(field: Any, rows: list[dict[str, str]]) -> None:
    times = [float(row["seconds"]) / _MINUTE for row in rows]
    for name, label in (("memory", "shared memory"), ("disk", "on disk")):
        sizes = [int(row[name]) / _MB for row in rows]
        field.plot(times, sizes, linewidth=1, label=label)
    held = [int(row["held_bytes"] or 0) / _MB for row in rows]
    field.plot(times, held, linewidth=1, label="held by drivers")
    field.set_ylabel("MB of all")
    field.set_title("Large objects: the stores of all nodes", loc="left", fontsize=10)


def _draw_done(field: Any, rows: list[dict[str, str]]) -> None:
    times = [float(row["seconds"]) / _MINUTE for row in rows]
    for name in ("tasks", "objects", "kills"):
        numbers = [int(row[name] or 0) for row in rows]
        most = max(numbers)
        field.plot(
            times, [100 * n / most if most else 0 for n in numbers], label=f"{name}: {most:,}"
        )
    field.set_ylabel("% done")
    field.set_title("What has been done", loc="left", fontsize=10)


if __name__ == "__main__":
    raise SystemExit(main())
