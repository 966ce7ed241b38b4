"""Which lines of workers a driver shows, and which it counts instead.

Rule 1. A line is shown as `(source pid=1234) text`, or `(source pid=1234, ip=10.0.0.7:6465) text` if it is from another node, on
        the stream that it was printed on, in the order in which its process printed it, at once.
Rule 2. The exception: a line that *another* process printed less than `repeat_window_s` ago is counted instead, and shown as
        `(source pid=1234) text [repeated 7x by other processes]`, where 1234 is the process whose line was shown.
        Only identical text is the same: lines that differ in a number say different things.
Rule 3. A process that repeats itself is shown each time; so are blank lines, which make up the layout of what is around
        them, and lines too long to be remembered.
Rule 4. Nothing vanishes: lines in = lines shown + repeats told + lines whose number is told (skipped by the user's own
        pattern, or, in the shell, more than the terminal took).

The count is told when the window ends, counted from the line that was shown; or earlier, when the session ends or more
lines come than are remembered. Not earlier on account of order: a counted line is on the screen already, above
everything that its process prints after it, so only the number is late, and telling it at each next line of that
process would print as much as was saved. Windows end in the order in which they began, so the counts of a traceback
that many workers print are a readable traceback again. When a window ends its line is forgotten: the next one is shown at
once, by whichever process it comes from.

Leaves to the shell (`runtime.console`): the clock, and writing what is in `outbox`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_REMEMBERED_LINES: Final = 4096
MAX_REMEMBERED_CHARS: Final = 1000
"""Longer lines are not remembered. Together the two bound what a `LineCounter` holds to some megabytes."""

RESET: Final = "\x1b[0m"
"""Ends a terminal's colour."""

# Everything that a terminal obeys but colours: moving the cursor or erasing would hit the lines of others here.
_CURSOR_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-ln-~]")


class Line(NamedTuple):
    """A line to write. `repeats` is 0 for a line as printed, else how often other processes printed it too."""

    stream: int
    pid: int
    source: str
    text: str
    repeats: int = 0
    place: str = ""
    """Of the process's node; "" for that of the driver."""


class _Window:
    """A line that was shown, and how often other processes have printed it since."""

    __slots__ = ("deadline", "line", "repeats")

    def __init__(self, line: Line, deadline: int) -> None:
        self.line = line
        self.deadline = deadline
        self.repeats = 0


class LineCounter:
    """Which lines to show, and which to count: the rules of the module's docstring. Times are nanoseconds.

    Args:
        window_ns: How long the same line of other processes is counted; 0 shows every line.
        allow: Lines in which this is found are always shown.
        skip: Lines in which this is found are never shown, only counted.
        max_lines: Most lines remembered.
    """

    def __init__(
        self,
        window_ns: int,
        *,
        allow: re.Pattern[str] | None = None,
        skip: re.Pattern[str] | None = None,
        max_lines: int = MAX_REMEMBERED_LINES,
    ) -> None:
        self.outbox: list[Line] = []
        """What is to be written, in order; the shell empties it."""
        self.skipped = 0
        """Lines that matched `skip`."""
        self._window_ns = window_ns
        self._allow = allow
        self._skip = skip
        self._max_lines = max_lines
        # In the order of their deadlines, since all windows are equally long.
        self._windows: dict[tuple[int, str], _Window] = {}
        # How many of them have something to tell.
        self._counting = 0

    def on_lines(
        self, pid: int, source: str, stream: int, lines: list[str], now: int, place: str = ""
    ) -> None:
        """A process has printed lines. `place` is where its node is, if that is another one."""
        self.on_tick(now)
        for raw in lines:
            text = last_state(raw)
            if self._skip is not None and self._skip.search(text):
                self.skipped += 1
            elif not self._is_countable(text):
                self.outbox.append(Line(stream, pid, source, text, 0, place))
            else:
                self._show_or_count(Line(stream, pid, source, text, 0, place), now)

    def on_tick(self, now: int) -> None:
        """Time has passed."""
        windows = self._windows
        while windows:
            window = next(iter(windows.values()))
            if window.deadline > now:
                return
            self._end_oldest()

    def on_end(self) -> None:
        """Nothing more will come: tell every count."""
        while self._windows:
            self._end_oldest()

    def next_deadline(self) -> int | None:
        """When to call `on_tick`; None while there is nothing to tell. It is that of the oldest window, whether or not that one
        has anything to tell, so that it never moves forward under a timer that is set already."""
        return next(iter(self._windows.values())).deadline if self._counting else None

    def check(self) -> None:
        """Assert the invariants."""
        windows = list(self._windows.values())
        assert len(windows) <= self._max_lines, "more lines are remembered than may be"
        deadlines = [window.deadline for window in windows]
        assert deadlines == sorted(deadlines), "windows are not in the order of their deadlines"
        counting = sum(window.repeats > 0 for window in windows)
        assert self._counting == counting, f"{counting} windows count, not {self._counting}"

    # --- inner workings ------------------------------------------------------------------------------------------

    def _is_countable(self, text: str) -> bool:
        return (
            self._window_ns > 0
            and len(text) <= MAX_REMEMBERED_CHARS
            and bool(text)
            and not text.isspace()
            and (self._allow is None or not self._allow.search(text))
        )

    def _show_or_count(self, line: Line, now: int) -> None:
        key = (line.stream, line.text)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._max_lines:
                self._end_oldest()
            self._windows[key] = _Window(line, now + self._window_ns)
            self.outbox.append(line)
        elif (window.line.pid, window.line.place) == (line.pid, line.place):
            self.outbox.append(line)
        else:
            self._counting += not window.repeats
            window.repeats += 1

    def _end_oldest(self) -> None:
        key = next(iter(self._windows))
        window = self._windows.pop(key)
        if window.repeats:
            self._counting -= 1
            self.outbox.append(window.line._replace(repeats=window.repeats))


def last_state(text: str) -> str:
    """A line as it would stand on a terminal in the end: of a progress bar, which returns to the start of its line again
    and again, the last state; and nothing that moves the cursor."""
    if "\x1b" in text:
        text = _CURSOR_CONTROL.sub("", text)
    if "\r" in text:
        text = next((state for state in reversed(text.split("\r")) if state.strip()), "")
    if "\x1b[" in text and not text.endswith(RESET):
        # A colour that is not reset would run on into the lines of others.
        text += RESET
    return text
