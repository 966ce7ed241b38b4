"""References and handles that are pickled by anything but shoal: into a file, a queue of multiprocessing, a database.

shoal's own pickler lists what it finds inside a value, so that it is kept for whoever loads it. Another pickler tells nobody. Such a
pickle keeps nothing alive, which is said once in a session for each kind, at the line that made it; `docs/lifetimes.md` says what happens
then.
"""

from __future__ import annotations

import warnings

from shoal.runtime import current_process


def warn_once(what: str, loses: str, instead: str) -> None:
    """Say that `what` was pickled outside of shoal, unless that was said in this session. Called by its `__reduce__`."""
    process = current_process.process
    if process is not None and not process.is_first(f"pickled outside: {loses}"):
        return
    warnings.warn(
        f"{what} is pickled outside of shoal, and such a pickle keeps nothing alive: {loses}. {instead}. Said once a session for each kind; see "
        "docs/lifetimes.md",
        UserWarning,
        # The pickler is written in C: its caller stands right behind `__reduce__`.
        stacklevel=3,
    )
