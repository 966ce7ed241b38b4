"""Where the time of one row goes: py-spy over every process of the session.

Writes a speedscope file (open it at https://www.speedscope.app) and prints, for the busiest
threads, the functions that time was spent in, which is mostly all that a miss needs to be
explained.  Only Python frames are seen; time in C counts for the Python function that called.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

THREADS_SHOWN = 4
FUNCTIONS_SHOWN = 12


class NoProfilerError(Exception):
    """py-spy is not installed."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One sampled thread: the functions it spent most time in, with that time in seconds.

    ``own`` is a function by itself, ``total`` with all that it called.
    """

    name: str
    seconds: float
    functions: tuple[str, ...]
    own: Mapping[str, float]
    total: Mapping[str, float]


def command(output: Path, rate_hz: int = 100) -> list[str]:
    """What to put before a command line to have it and all its children sampled.

    Without stopping them: a stopped process keeps its peers waiting, and the profile would show
    the waiting.  The price is a garbled stack now and then.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise NoProfilerError(
            "py-spy is not installed in this environment; it is part of shoal's dev extra: "
            "`pip install py-spy`"
        )
    options = ["--subprocesses", "--nonblocking", "--format", "speedscope", "--rate", str(rate_hz)]
    return [found, "record", *options, "--output", str(output), "--"]


def busiest(profile: Path) -> Sequence[Thread]:
    """The threads that were on a CPU longest, with the functions they were in."""
    recorded = json.loads(profile.read_text())
    frames = recorded["shared"]["frames"]
    threads: list[Thread] = []
    for thread in recorded["profiles"]:
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for stack, weight in zip(thread["samples"], thread["weights"], strict=True):
            places = [_place(frames[index]) for index in stack]
            own[places[-1]] += weight
            for place in set(places):  # once, however deep a function recurses
                total[place] += weight
        functions = tuple(place for place, _ in own.most_common(FUNCTIONS_SHOWN))
        threads.append(Thread(thread["name"], float(sum(own.values())), functions, own, total))
    threads.sort(key=lambda thread: thread.seconds, reverse=True)
    return threads[:THREADS_SHOWN]


def _place(frame: dict[str, object]) -> str:
    file = "/".join(Path(str(frame.get("file", "?"))).parts[-2:])
    return f"{frame['name']} ({file})"
