"""Writes down which functions are called, in which process, for `tests/docs/test_tour.py`.

Python imports a module of this name when it starts. The test puts this folder on `PYTHONPATH`, so that the driver and
what it starts (the head, or a control store and nodes' daemons) have the hook, and zygotes and workers by forking; the package knows
nothing of it. Without `SHOAL_TOUR_LOG` it does nothing.

Each call of a function named in the file `SHOAL_TOUR_FUNCTIONS` (one `path::function` a line; an empty file stands for every
function of the package) becomes a line `pid path::function` of the file `SHOAL_TOUR_LOG`. It is written at once, by one
`write` to a file opened for appending: so lines of different processes do not mix, the lines of one process are in the order
of its calls, and nothing is lost when a worker leaves by `os._exit`.
"""

from __future__ import annotations

import os
import sys
import threading
from types import CodeType, FrameType
from typing import Any

_log = -1


def mark() -> None:
    """Write a line that tells the reader of the log: what the tour tells begins here."""
    os.write(_log, b"%d mark\n" % os.getpid())


def install(log: str, root: str, functions: frozenset[str]) -> None:
    """Watch every thread of this process, and of those that will be forked from it."""
    global _log  # noqa: PLW0603 - a hook is installed once in a process
    _log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    package = os.path.join(root, "shoal") + os.sep
    # By code object, so that a call which nobody asks about costs one look-up.
    names: dict[CodeType, bytes | None] = {}

    def name_of(code: CodeType) -> bytes | None:
        path = os.path.realpath(code.co_filename)
        if not path.startswith(package):
            return None
        name = f"{os.path.relpath(path, root)}::{code.co_qualname}"
        return name.encode() if not functions or name in functions else None

    def on_event(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code in names:
            name = names[code]
        else:
            name = names[code] = name_of(code)
        if name is not None:
            os.write(_log, b"%d %s\n" % (os.getpid(), name))

    threading.setprofile(on_event)
    sys.setprofile(on_event)


if "SHOAL_TOUR_LOG" in os.environ:
    with open(os.environ["SHOAL_TOUR_FUNCTIONS"], encoding="utf-8") as file:
        install(
            os.environ["SHOAL_TOUR_LOG"],
            os.path.realpath(os.environ["SHOAL_TOUR_ROOT"]),
            frozenset(file.read().split()),
        )
