"""When a task is tried again whose worker was ended because memory was short, and when it is given up.

Such an end is nobody's fault that can be named: it says that too much ran at once. So it does not count as one of the task's
`max_retries`; a task that may be retried at all has `task_oom_retries` tries of their own for this, each after a pause that doubles, until
there is room. A task that had nobody beside it each time will not find more room the next time: three times are enough.
"""

from __future__ import annotations

from typing import Final

_MOST_ALONE: Final = 3
"""How often a task may be ended that had the node to itself."""

_MOST_DOUBLINGS: Final = 30


class Shortages:
    """How often one task was ended for want of memory.

    Attributes:
        count: How often.
        alone: How often no other worker had memory worth freeing.
        most_bytes: The most memory that its worker had for itself, as far as it is known.
    """

    __slots__ = ("alone", "count", "most_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.alone = 0
        self.most_bytes = 0

    def on_end(self, private_bytes: int, *, alone: bool) -> None:
        """It was ended once more."""
        self.count += 1
        self.alone += alone
        self.most_bytes = max(self.most_bytes, private_bytes)

    def why_not(self, retries: int) -> str:
        """Why it is given up, as a clause; "" if it is tried again. `retries` is -1 for ever."""
        if retries < 0:
            return ""
        if self.count > retries:
            return f"it may be tried again {retries} times after that (task_oom_retries)"
        if self.alone >= _MOST_ALONE:
            return f"no other worker of the node had much memory {self.alone} of these times, so there will not be more room"
        return ""

    def pause_ms(self, first_ms: int, most_ms: int) -> int:
        """How long it waits before it is tried again."""
        return min(most_ms, first_ms << min(self.count - 1, _MOST_DOUBLINGS))
