"""What workers print, on the driver's own standard output and error.

    worker ──pipe──► node (splits lines, keeps log files) ──Log──► Console.show ──► LineCounter ──► writer ──► sys.stdout
                                                                   any thread, no waiting           a thread of its own

`core.lines` decides what is shown and what is counted, without I/O or clock; `runtime.terminal` writes to whatever the user's streams
are. The `Console` writes in a thread that exists while there is something to write: `show` may be called with the
runtime's lock held, but a terminal can be stopped, and `sys.stdout` can be any object of the user's. The thread is no daemon,
because one that is killed inside a write takes the stream's lock with it and the interpreter aborts; so it must not
outlast the main thread by more than a write, however much workers print, and leaves the rest to `close`. What a stopped
output leaves unwritten is bounded; what is beyond is dropped and the number told. Once the output is broken or closed
there is nobody to tell. The node's log files have every line.

Left to the caller: calling `tick` at `next_deadline`, and `close` at the end, when the node has sent the last lines.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from itertools import groupby
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Final, Self, TextIO

from shoal.clock import monotonic_ns
from shoal.core.lines import Line, LineCounter
from shoal.runtime.terminal import Output

if TYPE_CHECKING:
    from shoal.config import Config
    from shoal.messages.node import Log

STDERR: Final = 2

MAX_UNWRITTEN_BYTES: Final = 32 * 1024 * 1024
"""Lower: lines are dropped when a burst meets a slow terminal. Higher: more memory behind a terminal that is stopped."""

_LINE_OVERHEAD_BYTES: Final = 200
_BATCH_LINES: Final = 1000
_LINGER_S: Final = 0.05
_CLOSE_TIMEOUT_S: Final = 2.0


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
        self._stdout = Output("stdout", stdout, colour, prefix)
        self._stderr = Output("stderr", stderr, colour, prefix)
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
            self._counter.on_lines(
                log.pid, log.source, log.stream, log.lines, self._clock(), log.place
            )
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
