r"""What user code prints: line by line, and marked with the name of what printed it.

The node reads a worker's standard output and error from pipes. A marker line (`\x1eshoal:<name>`) precedes the first line of
each new source; the node eats it. Text that C code writes to the descriptors directly goes under the last mark.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Final

MARK: Final = "\x1eshoal:"


class Source:
    """The name of what runs now; shared by both streams."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = ""


class MarkedStream(io.TextIOWrapper):
    """A line-buffered text stream that announces its source when that changes."""

    def __init__(self, fd: int, source: Source) -> None:
        super().__init__(
            io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        self._source = source
        self._announced = ""
        self._at_line_start = True

    def write(self, text: str) -> int:
        """Write text, after the mark that it needs."""
        name = self._source.name
        if name != self._announced and text:
            self._announced = name
            mark = f"{MARK}{name}\n"
            super().write(mark if self._at_line_start else "\n" + mark)
        if text:
            self._at_line_start = text.endswith("\n")
        return super().write(text)


def take_over() -> Source:
    """Put marked streams in the place of `sys.stdout` and `sys.stderr`."""
    source = Source()
    sys.stdout = MarkedStream(1, source)
    sys.stderr = MarkedStream(2, source)
    return source


def flush() -> None:
    """Write out what is buffered, as far as anybody reads it."""
    for stream in (sys.stdout, sys.stderr):
        # The reader may be gone, or the user has closed the stream: then there is nobody to tell.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
