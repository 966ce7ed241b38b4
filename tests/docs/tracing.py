"""Runs a program of the tour in a real session, and tells which functions each of its processes called, in which order.

The hook (`hook/sitecustomize.py`) is put on the child's path and nowhere else. To see all that a chapter calls, when the
tour has to be written anew::

    python -m tests.docs.tracing "A task"
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.docs.pages import REPOSITORY, TOUR, Step, chapters

HOOK: Final = Path(__file__).resolve().parent / "hook"
MARK: Final = "# The tour begins here."
TIMEOUT_S: Final = 60

# Who is who: the process that calls the function has the role.
_CONTROL: Final = "shoal/control/main.py::main"
_DAEMON: Final = "shoal/node/daemon.py::Daemon.start"
_ZYGOTE: Final = "shoal/node/zygote.py::Zygote.serve"
_FORKED: Final = "shoal/node/zygote.py::Zygote._become_worker"
_EMPLOYED: Final = frozenset(
    {
        "shoal/worker/executor.py::Executor._on_bind",
        "shoal/worker/executor.py::Executor._on_start_actor",
    }
)
_ROLES: Final = frozenset({_CONTROL, _DAEMON, _ZYGOTE, _FORKED, *_EMPLOYED})
# Of a session of its own, and of a cluster in the order in which its nodes start; drivers are at the first.
_HEAD: Final = ("head",)
_NODES: Final = ("home", "host")
_ZYGOTES: Final = ("zygote", "second zygote")
_WORKERS: Final = ("worker", "second worker", "third worker")

# What happens is the same without these; they make it happen in the same order every time. The service thread stays out,
# so that whichever thread waits does everything, and no lease comes or goes in the middle of a chapter.
SETTINGS: Final = {"SHOAL_WATCH_US": "60000000", "SHOAL_LEASE_IDLE_MS": "60000"}


@dataclass
class Trace:
    """The calls of a program after its mark, by process. `others` are workers that were never given work."""

    calls: dict[str, list[str]] = field(default_factory=dict)

    def first_calls(self, process: str, functions: Collection[str]) -> list[str]:
        """Those of `functions` that a process called, in the order in which it called each for the first time."""
        called = dict.fromkeys(name for name in self.calls.get(process, ()) if name in functions)
        return list(called)


def run(program: str, functions: Collection[str], folder: Path) -> Trace:
    """Run a program under the hook. No `functions`: note all of the package's.

    Raises:
        AssertionError: the program failed; the text has what it said.
    """
    script = folder / "program.py"
    script.write_text(program.replace(MARK, "import sitecustomize; sitecustomize.mark()"))
    log = folder / "calls"
    log.touch()
    wanted = folder / "functions"
    wanted.write_text("\n".join(sorted({*functions, *_ROLES} if functions else ())))
    path = [str(HOOK), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        **SETTINGS,
        "PYTHONPATH": os.pathsep.join(path),
        "SHOAL_TOUR_LOG": str(log),
        "SHOAL_TOUR_FUNCTIONS": str(wanted),
        "SHOAL_TOUR_ROOT": str(REPOSITORY),
    }
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            said, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise AssertionError(f"the program did not end in {TIMEOUT_S} s:\n{said}") from None
    assert process.returncode == 0, f"the program failed:\n{said}"
    return read(log.read_text(), process.pid)


def read(log: str, driver: int) -> Trace:
    """Make sense of a log: who is who, and what was called after the mark (from the start, if there is none)."""
    calls = [line.split(" ", 1) for line in log.splitlines()]
    in_cluster = any(name == _CONTROL for _, name in calls)
    names = {
        _CONTROL: iter(("control store",)),
        _DAEMON: iter(_NODES if in_cluster else _HEAD),
        _ZYGOTE: iter(_ZYGOTES),
        **dict.fromkeys(_EMPLOYED, iter(_WORKERS)),
    }
    roles = {str(driver): "driver"}
    for pid, name in calls:
        if name in names and pid not in roles:
            roles[pid] = next(names[name])
    marks = [position for position, (_, name) in enumerate(calls) if name == "mark"]
    trace = Trace()
    for pid, name in calls[marks[-1] + 1 if marks else 0 :]:
        trace.calls.setdefault(roles.get(pid, "others"), []).append(name)
    return trace


def objections(steps: Sequence[Step], trace: Trace) -> list[str]:
    """What is wrong with the steps of a chapter, given what its program did.

    In each process, the functions that the steps name must have been called, and first called in the order of the steps.
    So a function can be named once for each process and chapter, where it is called for the first time.
    """
    found = []
    for process in dict.fromkeys(step.process for step in steps):
        mine = [step for step in steps if step.process == process]
        by_function = {step.function: step for step in mine}
        if len(by_function) < len(mine):
            twice = next(step for step in mine if by_function[step.function] is not step)
            found.append(f"{process}: {twice.function} is named twice")
            continue
        called = trace.first_calls(process, by_function.keys())
        missing = [step for step in mine if step.function not in called]
        found += [f"step {s.number}: the {process} never called {s.function}" for s in missing]
        told = [step.function for step in mine if step.function in called]
        for says, does in zip(told, called, strict=True):
            if says != does:
                found.append(
                    f"step {by_function[says].number}: the {process} called {does} (step "
                    f"{by_function[does].number}) before {says}"
                )
                break
    return found


def main(title: str) -> None:
    """Print every call of a chapter's program, in the form of the log."""
    chapter = next(c for c in chapters(TOUR.read_text(encoding="utf-8")) if c.title == title)
    with tempfile.TemporaryDirectory(prefix="tour") as folder:
        trace = run(chapter.program, (), Path(folder))
    for process, names in trace.calls.items():
        for name in dict.fromkeys(names):
            print(f"**{process}** `{name}`")


if __name__ == "__main__":
    main(sys.argv[1])
