"""The driver's two output streams, as the place where workers' lines go: any object of the user's, a terminal that may be
stopped, a pipe whose reader may be gone.

What is left to `runtime.console`: which lines, when, and in which thread. Writing waits as long as the stream makes it wait.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import Final, TextIO

from shoal.core.lines import RESET, Line

logger = logging.getLogger("shoal")

_WRITE_BYTES: Final = 64 * 1024

# No red, which reads as an error, and neither black nor white, one of which is the background.
_PREFIX_COLOURS: Final = (36, 35, 32, 33, 34)


class Output:
    """One of the driver's two streams: that given, or what `sys` holds at the time of each write, since notebooks,
    tests and progress displays exchange it."""

    def __init__(self, name: str, given: TextIO | None, colour: bool | None, prefix: bool) -> None:
        self._name = name
        self._given = given
        self._colour = colour
        self._prefix = prefix
        self._broken: TextIO | None = None

    def write(self, lines: list[Line]) -> None:
        """Write lines. Waits as long as the stream makes it wait."""
        while True:
            stream = self._given if self._given is not None else getattr(sys, self._name)
            # A stream that failed is left alone; another one in its place is written to again.
            if stream is None or stream is self._broken:
                return
            try:
                _write(stream, self._format(lines, self._wants_colour(stream)))
                return
            except Exception as error:
                # It may be any object of the user's, and fail in any way.
                self._broken = stream
                if self._name == "stdout" and not _means_gone(error):
                    logger.exception(
                        "lines of workers are not shown any more, because sys.stdout, a %s, raised an error; "
                        "the workers' log files have them",
                        type(stream).__qualname__,
                    )

    def _wants_colour(self, stream: TextIO) -> bool:
        if self._colour is not None:
            return self._colour
        # What stands in for a stream often has no more than `write`, as for `print`.
        isatty = getattr(stream, "isatty", None)
        return isatty is not None and bool(isatty())

    def _format(self, lines: list[Line], colour: bool) -> list[str]:
        texts = []
        for line in lines:
            prefix = f"{_prefix(line)} " if self._prefix else ""
            if prefix and colour:
                code = _PREFIX_COLOURS[line.pid % len(_PREFIX_COLOURS)]
                prefix = f"\x1b[{code}m{prefix}{RESET}"
            repeats = f" [repeated {line.repeats:,}x by other processes]" if line.repeats else ""
            texts.append(f"{prefix}{line.text}{repeats}\n")
        return texts


def _prefix(line: Line) -> str:
    if not line.pid:
        return f"({line.source})"
    words = [line.source, f"pid={line.pid}"] if line.source else [f"pid={line.pid}"]
    if line.place:
        words[-1] += f", ip={line.place}"
    return f"({' '.join(words)})"


def _means_gone(error: Exception) -> bool:
    """Whether the stream was closed, or its reader or terminal is gone: then there is nobody to tell."""
    if isinstance(error, OSError):
        return error.errno in {errno.EPIPE, errno.EIO, errno.EBADF}
    return isinstance(error, ValueError)


def _write(stream: TextIO, lines: list[str]) -> None:
    fd = _descriptor(stream)
    for text in _pieces(lines, _WRITE_BYTES if fd is None else _undivided_bytes(fd)):
        if fd is not None:
            _write_to_descriptor(stream, fd, text)
            continue
        try:
            stream.write(text)
        except UnicodeEncodeError:
            # The line matters more than its dashes.
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        flush = getattr(stream, "flush", None)
        if flush is not None:
            flush()


def _descriptor(stream: TextIO) -> int | None:
    """The descriptor of an ordinary text stream; None for all that may do something of its own with what it is given (a
    notebook's stream, a compressed file, a test's capture)."""
    if type(stream) is not io.TextIOWrapper:
        return None
    buffer: object = stream.buffer
    raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer
    return raw.fileno() if type(raw) is io.FileIO else None


def _write_to_descriptor(stream: TextIO, fd: int, text: str) -> None:
    """Write past the stream's buffer, after what is in it. If the reader is gone (`program | head`), nothing of ours stays in
    the buffer, to raise BrokenPipeError at exit in a program that never printed anything itself; and a descriptor that
    somebody made non-blocking is waited for, where the buffer would lose text."""
    left = text.encode(stream.encoding, "backslashreplace")
    while True:
        try:
            stream.flush()
            while left:
                left = left[os.write(fd, left) :]
            return
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def _undivided_bytes(fd: int) -> int:
    """How much goes out in one write without text of other threads or processes in between: into a pipe no more than this,
    if it is nearly full. Elsewhere more, since each write lets a busy main thread have the interpreter."""
    mode = os.fstat(fd).st_mode
    return _WRITE_BYTES if stat.S_ISREG(mode) or stat.S_ISCHR(mode) else select.PIPE_BUF


def _pieces(lines: list[str], limit: int) -> Iterator[str]:
    """Whole lines together, up to `limit` bytes."""
    piece: list[str] = []
    room = limit
    for line in lines:
        size = len(line) if line.isascii() else len(line.encode(errors="replace"))
        if piece and size > room:
            yield "".join(piece)
            piece = []
            room = limit
        piece.append(line)
        room -= size
    yield "".join(piece)
