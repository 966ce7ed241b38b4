"""Looking for references that nobody can reach, though they are not dropped: those in cycles.

An exception that is kept in a variable of a frame that it came through holds all variables of that frame, until Python's collector
of cycles finds them. That looks when many objects have been made, and never in a process that idles. But what such references name may
be large, and others wait for its room. So garbage is looked for when memory of the store is short, in all processes of the node, and
when a worker has had nothing to do for a while.

Guarantees: it takes about a twentieth of the time of a process that does not idle, or less, unless its heap is so large that nobody
would wait for it; and nothing where the program has turned the collector off. Any thread, without the lock: finalizers of the user's
run here.
"""

from __future__ import annotations

import gc
from time import monotonic
from typing import Final

_AT_MOST_EVERY_S: Final = 2.0

_PART: Final = 20
"""Of this many parts of the time, one."""

_LOOKS: Final = 4
"""How often somebody who waits for room may count on it, at least, before he gives up."""


class Garbage:
    """See the module's docstring. `patience_s`: how long processes wait for room in the store."""

    __slots__ = ("_longest_s", "_not_before")

    def __init__(self, patience_s: float) -> None:
        self._longest_s = patience_s / _LOOKS
        self._not_before = 0.0

    def collect(self, *, idle: bool = False) -> bool:
        """Collect it, unless that was done a moment ago and this process does not `idle`. Whether it was done now."""
        began = monotonic()
        if (began < self._not_before and not idle) or not gc.isenabled():
            return False
        # Another thread need not begin, too.
        self._not_before = began + _AT_MOST_EVERY_S
        gc.collect()
        ended = monotonic()
        pause_s = max(_AT_MOST_EVERY_S, _PART * (ended - began))
        self._not_before = ended + min(pause_s, self._longest_s)
        return True
