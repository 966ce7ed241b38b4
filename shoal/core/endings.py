"""How processes end, in clauses that complete "the process …" and "the worker …"."""

from __future__ import annotations

from typing import Final

# The names are the same on every Unix; the numbers of these are too.
_SIGNALS: Final = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    14: "SIGALRM",
    15: "SIGTERM",
}


def exit_clause(status: int) -> str:
    """What `os.waitstatus_to_exitcode` reports, as a clause."""
    if status >= 0:
        return f"exited with code {status}"
    return f"was killed by {_SIGNALS.get(-status, f'signal {-status}')}"


def killed_clause(reason: str) -> str:
    """Killed by order, for a reason that is a clause itself."""
    return f"was killed: {reason}"


def ended_clause(reason: str) -> str:
    """Ended by order, with nothing wrong about it."""
    return f"was ended: {reason}"
