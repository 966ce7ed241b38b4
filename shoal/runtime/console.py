"""What workers print, on the driver's own standard output and error.

    worker ──pipe──► node (splits lines, keeps log files) ──Log──► Console.show ──► LineCounter ──► writer ──► sys.stdout
                                                                   any thread, no waiting           a thread of its own

Rule 1. A line is shown as `(source pid=1234) text`, on the stream that it was printed on, in the order in which its process
        printed it, at once.
Rule 2. The exception: a line that *another* process printed less than `repeat_window_s` ago is counted instead, and shown as
        `(source pid=1234) text [repeated 7x by other processes]`, where 1234 is the process whose line was shown.
        Only identical text is the same: lines that differ in a number say different things.
Rule 3. A process that repeats itself is shown each time; so are blank lines, which make up the layout of what is around
        them, and lines too long to be remembered.
Rule 4. Nothing vanishes: lines in = lines shown + repeats told + lines whose number is told (skipped by the user's own
        pattern, or more than the terminal took). Once the output is broken or closed there is nobody to tell.

The count is told when the window ends, counted from the line that was shown; or earlier, when the session ends or more
lines come than are remembered. Not earlier on account of order: a counted line is on the screen already, above
everything that its process prints after it, so only the number is late, and telling it at each next line of that
process would print as much as was saved. Windows end in the order in which they began, so the counts of a traceback
that many workers print are a readable traceback again. When a window ends its line is forgotten: the next one is shown at
once, by whichever process it comes from.

`LineCounter` decides, without I/O or clock. `Console` writes, in a thread that exists while there is something to write:
`show` may be called with the runtime's lock held, but a terminal can be stopped, and `sys.stdout` can be any object of
the user's. The thread is no daemon, because one that is killed inside a write takes the stream's lock with it and the
interpreter aborts; so it must not outlast the main thread by more than a write, however much workers print, and leaves
the rest to `close`. What a stopped output leaves unwritten is bounded; what is beyond is dropped and the number told. The
node's log files have every line.

Left to the caller: calling `tick` at `next_deadline`, and `close` at the end, when the node has sent the last lines.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TextIO

from shoal.clock import monotonic_ns

if TYPE_CHECKING:
    from shoal.config import Config
    from shoal.messages.node import Log

logger = logging.getLogger("shoal")

STDERR: Final = 2

MAX_REMEMBERED_LINES: Final = 4096
MAX_REMEMBERED_CHARS: Final = 1000
"""Longer lines are not remembered. Together the two bound what a `LineCounter` holds to some megabytes."""

MAX_UNWRITTEN_BYTES: Final = 32 * 1024 * 1024
"""Lower: lines are dropped when a burst meets a slow terminal. Higher: more memory behind a terminal that is stopped."""

_LINE_OVERHEAD_BYTES: Final = 200
_BATCH_LINES: Final = 1000
_WRITE_BYTES: Final = 64 * 1024
_LINGER_S: Final = 0.05
_CLOSE_TIMEOUT_S: Final = 2.0

# Everything that a terminal obeys but colours: moving the cursor or erasing would hit the lines of others here.
_CURSOR_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-ln-~]")
_RESET: Final = "\x1b[0m"

# No red, which reads as an error, and neither black nor white, one of which is the background.
_PREFIX_COLOURS: Final = (36, 35, 32, 33, 34)


class Line(NamedTuple):
    """A line to write. `repeats` is 0 for a line as printed, else how often other processes printed it too."""

    stream: int
    pid: int
    source: str
    text: str
    repeats: int = 0


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

    def on_lines(self, pid: int, source: str, stream: int, lines: list[str], now: int) -> None:
        """A process has printed lines."""
        self.on_tick(now)
        for raw in lines:
            text = last_state(raw)
            if self._skip is not None and self._skip.search(text):
                self.skipped += 1
            elif not self._is_countable(text):
                self.outbox.append(Line(stream, pid, source, text))
            else:
                self._show_or_count(Line(stream, pid, source, text), now)

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
        elif window.line.pid == line.pid:
            # Or a process of that pid on another machine: then a line is shown that might have been counted.
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
    if "\x1b[" in text and not text.endswith(_RESET):
        # A colour that is not reset would run on into the lines of others.
        text += _RESET
    return text


class _Output:
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
                prefix = f"\x1b[{code}m{prefix}{_RESET}"
            repeats = f" [repeated {line.repeats:,}x by other processes]" if line.repeats else ""
            texts.append(f"{prefix}{line.text}{repeats}\n")
        return texts


def _prefix(line: Line) -> str:
    if not line.pid:
        return f"({line.source})"
    return f"({line.source} pid={line.pid})" if line.source else f"(pid={line.pid})"


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


class Console:
    """Shows what workers print. See the module's docstring. Every method may be called by any thread.

    Args:
        stdout: Where lines of workers' standard output go; None for what `sys.stdout` is at the time.
        stderr: The same for standard error.
        repeat_window_s: How long the same line of other processes is counted rather than shown; 0 shows every line.
        colour: Whether prefixes are coloured, a colour for each process; None: on terminals.
        prefix: Whether lines begin with the name and pid of what printed them.
        allow: Lines in which this is found are never counted but always shown.
        skip: Lines in which this is found are not shown; their number is told at the end.
        clock: Nanoseconds; that of `next_deadline` and `tick`.
    """

    def __init__(
        self,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        *,
        repeat_window_s: float = 5.0,
        colour: bool | None = None,
        prefix: bool = True,
        allow: re.Pattern[str] | None = None,
        skip: re.Pattern[str] | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._counter = LineCounter(int(repeat_window_s * 1e9), allow=allow, skip=skip)
        self._clock = clock
        self._stdout = _Output("stdout", stdout, colour, prefix)
        self._stderr = _Output("stderr", stderr, colour, prefix)
        # Guards everything below and the counter; never held while a stream is written to.
        self._changed = threading.Condition(threading.Lock())
        self._unwritten: list[Line] = []
        self._unwritten_bytes = 0
        self._dropped = 0
        self._writer: threading.Thread | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, config: Config, environ: Mapping[str, str] | None = None) -> Self:
        """The console of a driver, as its configuration and these variables say:

        `SHOAL_DEDUP_LOGS=0` shows every line. `SHOAL_DEDUP_LOGS_AGG_WINDOW_S` goes before `config.log_repeat_window_s`.
        `SHOAL_DEDUP_LOGS_ALLOW_REGEX` and `SHOAL_DEDUP_LOGS_SKIP_REGEX` are `allow` and `skip`.
        `SHOAL_DISABLE_WORKER_LOG_PREFIX=1` shows bare lines. `SHOAL_COLOR_PREFIX` is 0 or 1, whatever the output is;
        without it there are colours on a terminal, unless `NO_COLOR` is set.

        Raises:
            ValueError: a variable that cannot be understood.
        """
        environ = os.environ if environ is None else environ
        window_s = config.log_repeat_window_s
        if text := environ.get("SHOAL_DEDUP_LOGS_AGG_WINDOW_S"):
            window_s = _seconds("SHOAL_DEDUP_LOGS_AGG_WINDOW_S", text)
        if _flag(environ, "SHOAL_DEDUP_LOGS") is False:
            window_s = 0.0
        colour = _flag(environ, "SHOAL_COLOR_PREFIX")
        if colour is None and (environ.get("NO_COLOR") or environ.get("TERM") == "dumb"):
            colour = False
        return cls(
            repeat_window_s=window_s,
            colour=colour,
            prefix=not _flag(environ, "SHOAL_DISABLE_WORKER_LOG_PREFIX"),
            allow=_pattern(environ, "SHOAL_DEDUP_LOGS_ALLOW_REGEX"),
            skip=_pattern(environ, "SHOAL_DEDUP_LOGS_SKIP_REGEX"),
        )

    def show(self, log: Log) -> None:
        """Lines have come. Does not wait for the output, however slow it is."""
        with self._changed:
            if self._closed:
                return
            if self._unwritten_bytes > MAX_UNWRITTEN_BYTES:
                self._dropped += len(log.lines)
                return
            self._tell_dropped()
            self._counter.on_lines(log.pid, log.source, log.stream, log.lines, self._clock())
            self._hand_over()

    def next_deadline(self) -> int | None:
        """When to call `tick`, by `clock`; None while there is nothing to tell. It may become something after `show` and
        `tick`. Once given it does not move forward, so one timer at a time is enough."""
        with self._changed:
            return self._counter.next_deadline()

    def tick(self, now: int | None = None) -> None:
        """Tell the counts whose windows have ended. Does not wait for the output."""
        with self._changed:
            self._counter.on_tick(self._clock() if now is None else now)
            self._hand_over()

    def flush(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> bool:
        """Tell every count, and wait until all is written; False if the output did not take it in time. Not to be called
        with a lock held that the user's code might need."""
        with self._changed:
            self._tell_dropped()
            self._counter.on_end()
            self._hand_over()
            return self._wait_until_written(timeout_s)

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> bool:
        """Tell every count, and wait until all is written and the thread is gone; False if the output did not take it in
        time: the thread then ends when it does, and the process not before. What comes later is not shown. In exit handlers,
        when there can be no thread, this waits for the output as `print` would."""
        deadline = monotonic() + timeout_s
        with self._changed:
            if not self._closed:
                self._tell_dropped()
                self._counter.on_end()
                self._tell_skipped()
                self._hand_over()
            self._closed = True
            self._changed.notify_all()
            written = self._wait_until_written(timeout_s)
            writer = self._writer
        if writer is None or writer is threading.current_thread():
            return written
        writer.join(max(deadline - monotonic(), 0.0))
        return written and not writer.is_alive()

    # --- with the lock held --------------------------------------------------------------------------------------

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._tell_hidden(self._dropped, "came faster than this output took them")
            self._dropped = 0

    def _tell_skipped(self) -> None:
        if self._counter.skipped:
            self._tell_hidden(self._counter.skipped, "matched SHOAL_DEDUP_LOGS_SKIP_REGEX")
            self._counter.skipped = 0

    def _tell_hidden(self, count: int, why: str) -> None:
        lines = "1 line" if count == 1 else f"{count:,} lines"
        text = (
            f"not shown here: {lines} of workers that {why}; the workers' log files have everything"
        )
        self._counter.outbox.append(Line(STDERR, 0, "shoal", text))

    def _hand_over(self) -> None:
        """Give the writer what the counter decided, and see that there is a writer."""
        lines = self._counter.outbox
        if lines:
            self._counter.outbox = []
            self._unwritten += lines
            self._unwritten_bytes += _size(lines)
        if not self._unwritten:
            return
        if self._writer is not None:
            self._changed.notify_all()
            return
        if _main_has_ended():
            return
        writer = threading.Thread(target=self._write_out, name="shoal-console", daemon=False)
        try:
            writer.start()
        except RuntimeError:
            # No thread is to be had; the next lines try again, and `flush` and `close` can do without.
            return
        self._writer = writer

    def _wait_until_written(self, timeout_s: float) -> bool:
        if self._writer is threading.current_thread():
            # The user's stream calls us while we write to it: waiting would be for ourselves.
            return False
        deadline = monotonic() + timeout_s
        while self._unwritten_bytes:
            if self._writer is None and self._unwritten:
                self._write_batch()
            elif not self._changed.wait(max(deadline - monotonic(), 0.0)):
                return not self._unwritten_bytes
        return True

    # --- the writer ----------------------------------------------------------------------------------------------

    def _write_out(self) -> None:
        with self._changed:
            try:
                while not _main_has_ended():
                    if self._unwritten:
                        self._write_batch()
                    elif self._dropped:
                        self._tell_dropped()
                        self._hand_over()
                    elif self._closed or not self._changed.wait(_LINGER_S):
                        # Lingering costs less than a thread for each line. Lines may still come as the wait ends.
                        if not self._unwritten:
                            return
            finally:
                # What is left now is for those who wait in `flush` or `close`, if any.
                self._writer = None
                self._changed.notify_all()

    def _write_batch(self) -> None:
        """Write some of what there is. Called with the lock held, and lets go of it meanwhile."""
        lines = self._unwritten[:_BATCH_LINES]
        del self._unwritten[:_BATCH_LINES]
        self._changed.release()
        try:
            for stream, run in groupby(lines, attrgetter("stream")):
                output = self._stderr if stream == STDERR else self._stdout
                output.write(list(run))
        finally:
            self._changed.acquire()
            self._unwritten_bytes -= _size(lines)
            self._changed.notify_all()


def _main_has_ended() -> bool:
    """Whether the interpreter waits for its threads to end, and will run exit handlers only then."""
    return not threading.main_thread().is_alive()


def _size(lines: list[Line]) -> int:
    return sum(len(line.text) + _LINE_OVERHEAD_BYTES for line in lines)


def _flag(environ: Mapping[str, str], name: str) -> bool | None:
    text = environ.get(name, "").strip().lower()
    if not text:
        return None
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{name}={text!r} is neither yes nor no: set it to 1 or 0, or unset it")


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{name}={text!r} is not a number of seconds; 0 shows every line")
    return seconds


def _pattern(environ: Mapping[str, str], name: str) -> re.Pattern[str] | None:
    text = environ.get(name)
    if not text:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{name}={text!r} is not a regular expression: {error}") from None
