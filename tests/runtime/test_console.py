"""What workers print, at the driver: `LineCounter` by events and against its rules, `Console` on streams of every kind."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import re
import subprocess
import sys
import termios
import textwrap
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Config
from shoal.messages.node import Log
from shoal.runtime import console as console_module
from shoal.runtime.console import (
    MAX_REMEMBERED_CHARS,
    Console,
    Line,
    LineCounter,
    last_state,
)

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000
WINDOW = 5 * SECOND


def printed(counter: LineCounter, pid: int, *lines: str, now: int = 0, stream: int = 1) -> None:
    counter.on_lines(pid, f"f{pid}", stream, list(lines), now)
    counter.check()


def taken(counter: LineCounter) -> list[tuple[int, str, int]]:
    """What the counter has decided to show since the last time: (pid, text, repeats)."""
    counter.check()
    lines, counter.outbox = counter.outbox, []
    return [(line.pid, line.text, line.repeats) for line in lines]


# --- LineCounter: which lines are shown ----------------------------------------------------------------------------


def test_a_line_is_shown_at_once_with_who_printed_it() -> None:
    counter = LineCounter(WINDOW)
    counter.on_lines(7, "rollout", 2, ["a", "b"], 0)
    assert counter.outbox == [Line(2, 7, "rollout", "a"), Line(2, 7, "rollout", "b")]


def test_the_line_of_other_processes_is_counted_until_the_window_ends() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "ready")
    printed(counter, 2, "ready", now=1 * SECOND)
    printed(counter, 3, "ready", "ready", now=2 * SECOND)
    assert taken(counter) == [(1, "ready", 0)]
    counter.on_tick(WINDOW - 1)
    assert taken(counter) == []
    counter.on_tick(WINDOW)
    assert taken(counter) == [(1, "ready", 3)]


def test_after_its_window_a_line_is_new_again() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "tick")
    printed(counter, 2, "tick")
    printed(counter, 2, "tick", now=WINDOW)
    assert taken(counter) == [(1, "tick", 0), (1, "tick", 1), (2, "tick", 0)]
    printed(counter, 1, "tick", now=WINDOW + 1)
    assert taken(counter) == []


def test_a_process_that_repeats_itself_is_shown_each_time() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "step", "step")
    printed(counter, 2, "step")
    printed(counter, 1, "step")
    assert taken(counter) == [(1, "step", 0)] * 3


def test_only_identical_text_is_the_same() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "loss 0.5")
    printed(counter, 2, "loss 0.25", "Loss 0.5", "loss 0.5 ")
    assert [text for _, text, _ in taken(counter)] == [
        "loss 0.5",
        "loss 0.25",
        "Loss 0.5",
        "loss 0.5 ",
    ]


def test_the_two_streams_are_counted_apart() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "done", stream=1)
    printed(counter, 2, "done", stream=2)
    assert taken(counter) == [(1, "done", 0), (2, "done", 0)]


def test_counts_come_in_the_order_in_which_the_lines_were_shown() -> None:
    traceback = ["Traceback:", "  File a", "  File b", "ValueError: x"]
    counter = LineCounter(WINDOW)
    printed(counter, 1, *traceback)
    printed(counter, 3, *reversed(traceback))
    printed(counter, 2, *traceback)
    taken(counter)
    counter.on_end()
    assert taken(counter) == [(1, line, 2) for line in traceback]


def test_the_end_tells_counts_and_nothing_else() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "alone", "shared")
    printed(counter, 2, "shared")
    taken(counter)
    counter.on_end()
    assert taken(counter) == [(1, "shared", 1)]
    counter.on_end()
    assert taken(counter) == []


def test_without_a_window_every_line_is_shown() -> None:
    counter = LineCounter(0)
    for pid in range(3):
        printed(counter, pid, "hello")
    assert taken(counter) == [(pid, "hello", 0) for pid in range(3)]
    assert counter.next_deadline() is None


@pytest.mark.parametrize("text", ["", "   ", "\t", "\r", "x" * (MAX_REMEMBERED_CHARS + 1)])
def test_blank_and_very_long_lines_are_always_shown(text: str) -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, text)
    printed(counter, 2, text)
    assert len(taken(counter)) == 2


def test_allowed_lines_are_always_shown() -> None:
    counter = LineCounter(WINDOW, allow=re.compile("epoch"))
    for pid in (1, 2):
        printed(counter, pid, "an epoch ends", "an era ends")
    shown = [(1, "an epoch ends", 0), (1, "an era ends", 0), (2, "an epoch ends", 0)]
    assert taken(counter) == shown


def test_skipped_lines_are_counted() -> None:
    counter = LineCounter(WINDOW, skip=re.compile(r"^DEBUG"), allow=re.compile("important"))
    printed(counter, 1, "DEBUG a", "INFO DEBUG", "DEBUG important")
    assert taken(counter) == [(1, "INFO DEBUG", 0)]
    assert counter.skipped == 2


def test_no_more_lines_are_remembered_than_may_be_and_the_oldest_tells_its_count() -> None:
    counter = LineCounter(WINDOW, max_lines=2)
    printed(counter, 1, "a", "b")
    printed(counter, 2, "a")
    printed(counter, 1, "c")
    assert taken(counter) == [(1, "a", 0), (1, "b", 0), (1, "a", 1), (1, "c", 0)]
    printed(counter, 2, "b", "a")
    assert taken(counter) == [(1, "b", 1), (2, "a", 0)]


def test_the_deadline_is_that_of_the_first_count() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "a", now=0)
    printed(counter, 1, "b", now=1)
    printed(counter, 1, "c", now=2)
    assert counter.next_deadline() is None
    printed(counter, 2, "c", now=3)
    assert counter.next_deadline() == WINDOW + 2
    printed(counter, 2, "b", now=3)
    assert counter.next_deadline() == WINDOW + 1
    counter.on_tick(WINDOW + 1)
    assert counter.next_deadline() == WINDOW + 2
    counter.on_tick(WINDOW + 2)
    assert counter.next_deadline() is None


# --- LineCounter: the rules, on any course of events ----------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3 * SECOND),  # time since the event before
        st.integers(1, 4),
        st.sampled_from([1, 2]),
        st.lists(st.sampled_from(["a", "b", "c", "d", "skip", "allow", "", " "]), max_size=5),
        st.booleans(),
    ),
    max_size=40,
)


@given(EVENTS, st.sampled_from([0, WINDOW]), st.integers(1, 5))
def test_every_line_is_shown_or_counted(events: list[Any], window: int, max_lines: int) -> None:
    counter = LineCounter(
        window, allow=re.compile("allow"), skip=re.compile("skip"), max_lines=max_lines
    )
    came: Counter[tuple[int, str]] = Counter()
    came_from: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    shown_at: dict[tuple[int, str], int] = {}
    out: list[tuple[int, Line]] = []
    now = 0

    def take() -> None:
        for line in counter.outbox:
            key = (line.stream, line.text)
            if line.repeats:
                # Rule 2: a count belongs to a line that was shown, under the name of who printed it.
                assert any(earlier == line._replace(repeats=0) for _, earlier in out)
            else:
                shown_at[key] = now
            out.append((now, line))
        counter.outbox = []

    for passed, pid, stream, lines, tick in events:
        now += passed
        if tick:
            counter.on_tick(now)
            assert (counter.next_deadline() or now + 1) > now
            take()
        counter.on_lines(pid, f"f{pid}", stream, lines, now)
        counter.check()
        take()
        for text in lines:
            came[stream, text] += 1
            came_from[pid, stream].append(text)
            if text != "skip":
                # Rule 1 or 2: whatever comes is on the screen already, or since less than a window.
                assert now - shown_at[stream, text] <= window
    counter.on_end()
    take()

    # Rule 4.
    told: Counter[tuple[int, str]] = Counter()
    for _, line in out:
        told[line.stream, line.text] += line.repeats or 1
    assert counter.skipped == sum(count for (_, text), count in came.items() if text == "skip")
    assert told == Counter({key: n for key, n in came.items() if key[1] != "skip"})
    # Rule 1: in the order in which each process printed.
    for (pid, stream), texts in came_from.items():
        shown = [
            line.text
            for _, line in out
            if (line.pid, line.stream, line.repeats) == (pid, stream, 0)
        ]
        rest = iter(texts)
        assert all(text in rest for text in shown), f"{shown} is not a part of {texts} in its order"
    # Rule 3, and everything if there is no window.
    always = {"allow", "", " "}
    assert not any(line.repeats for _, line in out if line.text in always or not window)


# --- the text of a line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain", "plain"),
        ("windows\r", "windows"),
        (" 10%\r 50%\r100%", "100%"),
        (" 10%\r100%\r   \r", "100%"),
        ("\r\r", ""),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("up\x1b[A\x1b[2K\x1b[1;1Hand away", "upand away"),
        ("\x1b[32m 10%\r\x1b[32m100%\r\x1b[K", "\x1b[32m100%\x1b[0m"),
    ],
)
def test_the_last_state_of_a_line(raw: str, text: str) -> None:
    assert last_state(raw) == text


# --- Console: what is written --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def closing(console: Console) -> Iterator[Console]:
    try:
        yield console
    finally:
        console.close()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "this did not happen in time"
        sleep(0.002)


def log(pid: int, *lines: str, source: str = "f", stream: int = 1) -> Log:
    return Log(pid, source, stream, list(lines))


def test_lines_go_to_their_streams_with_a_prefix() -> None:
    out, err = io.StringIO(), io.StringIO()
    with closing(Console(out, err)) as console:
        console.show(log(12, "one", "two", source="rollout"))
        console.show(log(12, "oops", source="rollout", stream=2))
        console.show(log(13, "three", source=""))
        console.show(log(0, "a notice", source="shoal", stream=2))
        assert console.flush()
        assert out.getvalue() == "(rollout pid=12) one\n(rollout pid=12) two\n(pid=13) three\n"
        assert err.getvalue() == "(rollout pid=12) oops\n(shoal) a notice\n"


def test_repeats_are_told_by_tick_by_flush_and_by_close() -> None:
    now = [0]
    out = io.StringIO()
    with closing(Console(out, repeat_window_s=2, clock=lambda: now[0])) as console:
        for said in ("by tick", "by flush", "by close"):
            console.show(log(1, said))
            console.show(log(2, said))
            console.show(log(3, said))
            if said == "by tick":
                assert console.next_deadline() == 2 * SECOND
                now[0] = 2 * SECOND
                console.tick(now[0])
                assert console.next_deadline() is None
                until(lambda: "2x" in out.getvalue())
            elif said == "by flush":
                assert console.flush()
        assert "by close [" not in out.getvalue()
    told = [
        f"(f pid=1) by {how} [repeated 2x by other processes]" for how in ("tick", "flush", "close")
    ]
    assert [line for line in out.getvalue().splitlines() if "repeated" in line] == told


def test_bare_lines() -> None:
    out = Terminal()
    with closing(Console(out, prefix=False, colour=True)) as console:
        console.show(log(1, "x"))
        console.show(log(2, "x"))
    assert out.getvalue() == "x\nx [repeated 1x by other processes]\n"


def test_prefixes_are_coloured_on_a_terminal_only() -> None:
    out, err = Terminal(), io.StringIO()
    with closing(Console(out, err)) as console:
        for stream in (1, 2):
            console.show(log(5, "x", stream=stream))
            console.show(log(6, "y", stream=stream))
    assert re.fullmatch(
        r"(\x1b\[3\dm)\(f pid=5\) \x1b\[0mx\n(?!\1)(\x1b\[3\dm)\(f pid=6\) \x1b\[0my\n",
        out.getvalue(),
    )
    assert err.getvalue() == "(f pid=5) x\n(f pid=6) y\n"


@pytest.mark.parametrize(("colour", "stream"), [(True, io.StringIO()), (False, Terminal())])
def test_colours_can_be_chosen(colour: bool, stream: io.StringIO) -> None:
    with closing(Console(stream, colour=colour)) as console:
        console.show(log(5, "x"))
    assert ("\x1b" in stream.getvalue()) is colour


# --- Console: settings ----------------------------------------------------------------------------------------------


def shown_with(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, **config: Any
) -> list[str]:
    """What a terminal shows of two processes that print the same three lines."""
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    with closing(Console.from_environment(Config(**config), environ)) as console:
        for pid in (1, 2):
            console.show(log(pid, "apple", "pear", "plum"))
    return out.getvalue().splitlines()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_with({}, monkeypatch)
    assert len(lines) == 6
    assert sum("[repeated 1x by other processes]" in line for line in lines) == 3
    assert all(line.startswith("\x1b[") for line in lines)


@pytest.mark.parametrize(
    ("environ", "config"),
    [
        ({"SHOAL_DEDUP_LOGS": "0"}, {}),
        ({"SHOAL_DEDUP_LOGS_AGG_WINDOW_S": "0"}, {}),
        ({}, {"log_repeat_window_s": 0.0}),
    ],
)
def test_every_line_can_be_shown(
    environ: dict[str, str], config: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown_with(environ | {"SHOAL_DISABLE_WORKER_LOG_PREFIX": "1"}, monkeypatch, **config)
    assert lines == ["apple", "pear", "plum"] * 2


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"SHOAL_COLOR_PREFIX": "0"}, False),
        ({"SHOAL_COLOR_PREFIX": "1", "NO_COLOR": "1"}, True),
    ],
)
def test_colour_variables(
    environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("\x1b" in line for line in shown_with(environ, monkeypatch)) is coloured


def test_patterns_and_the_number_of_lines_that_they_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "SHOAL_DISABLE_WORKER_LOG_PREFIX": "1",
        "SHOAL_DEDUP_LOGS_ALLOW_REGEX": "^pear$",
        "SHOAL_DEDUP_LOGS_SKIP_REGEX": "pp",
    }
    *lines, last = shown_with(environ, monkeypatch)
    assert lines == ["pear", "plum", "pear", "plum [repeated 1x by other processes]"]
    assert last.startswith(
        "2 lines of workers were not shown, because they match SHOAL_DEDUP_LOGS_SKIP"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHOAL_DEDUP_LOGS", "maybe"),
        ("SHOAL_COLOR_PREFIX", "2"),
        ("SHOAL_DEDUP_LOGS_AGG_WINDOW_S", "soon"),
        ("SHOAL_DEDUP_LOGS_AGG_WINDOW_S", "-1"),
        ("SHOAL_DEDUP_LOGS_AGG_WINDOW_S", "nan"),
        ("SHOAL_DEDUP_LOGS_ALLOW_REGEX", "("),
        ("SHOAL_DEDUP_LOGS_SKIP_REGEX", "*"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}='{re.escape(value)}' is "):
        Console.from_environment(Config(), {name: value})


# --- Console: streams of every kind --------------------------------------------------------------------------------


def test_the_streams_of_the_moment_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    with closing(Console(prefix=False)) as console:
        for stream in (first, second):
            monkeypatch.setattr(sys, "stdout", stream)
            console.show(log(1, "x"))
            assert console.flush()
    assert first.getvalue() == second.getvalue() == "x\n"


def test_a_closed_stream_is_left_alone_until_there_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, fresh = io.StringIO(), io.StringIO()
    closed.close()
    with closing(Console(prefix=False)) as console:
        for stream, text in ((closed, "lost"), (None, "lost too"), (fresh, "shown")):
            monkeypatch.setattr(sys, "stdout", stream)
            console.show(log(1, text))
            assert console.flush()
    assert fresh.getvalue() == "shown\n"


def test_a_stream_that_only_writes() -> None:
    class Tee:
        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> None:
            self.text += text

    tee: Any = Tee()
    with closing(Console(tee)) as console:
        console.show(log(1, "x"))
    assert tee.text == "(f pid=1) x\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokenPipeError(errno.EPIPE, "no reader"), False),
        (ValueError("closed"), False),
        (OSError(errno.EIO, "the terminal is gone"), False),
        (OSError(errno.ENOSPC, "disk full"), True),
        (RuntimeError("a defect of the user's"), True),
    ],
)
def test_a_stream_that_fails_is_not_tried_again(
    error: Exception, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            tries.append(text)
            raise error

    err = io.StringIO()
    with caplog.at_level(logging.WARNING), closing(Console(Broken(), err)) as console:
        for _ in range(3):
            console.show(log(1, "x"))
            assert console.flush()
        console.show(log(1, "still here", stream=2))
    assert len(tries) == 1
    assert err.getvalue() == "(f pid=1) still here\n"
    assert [("log files have them" in record.message) for record in caplog.records] == [True] * told


def test_characters_that_the_stream_does_not_have() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

        def write(self, text: str) -> int:
            return super().write(text.encode("ascii").decode())

    out = Ascii()
    with pipe("ascii") as (read_end, stream), closing(Console(out, stream)) as console:
        for number in (1, 2):
            console.show(log(1, "5 µs – ok", "plain", stream=number))
        assert console.flush()
        expected = "(f pid=1) 5 \\xb5s \\u2013 ok\n(f pid=1) plain\n"
        assert out.getvalue() == expected
        assert os.read(read_end, 1000).decode() == expected


@contextmanager
def pipe(encoding: str = "utf-8") -> Iterator[tuple[int, TextIO]]:
    """The read end, and a text stream at the write end like that of a process whose output is piped."""
    read_end, write_end = os.pipe()
    try:
        with open(write_end, "w", encoding=encoding) as stream:
            yield read_end, stream
    finally:
        os.close(read_end)


def test_text_goes_after_what_the_program_has_printed() -> None:
    with pipe() as (read_end, stream), closing(Console(stream)) as console:
        stream.write("buffered\n")
        console.show(log(1, "x", "µ"))
        assert console.flush()
        stream.write("next\n")
        stream.flush()
        assert os.read(read_end, 1000).decode() == "buffered\n(f pid=1) x\n(f pid=1) µ\nnext\n"


def test_a_pipe_without_a_reader_leaves_nothing_in_the_buffer() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    # Its end would raise BrokenPipeError if there were anything to flush.
    with open(write_end, "w", encoding="utf-8") as stream, closing(Console(stream)) as console:
        console.show(log(1, "x"))
        assert console.flush()


def test_a_non_blocking_pipe_loses_nothing() -> None:
    lines = [f"{number} " + "x" * 500 for number in range(1000)]
    with pipe() as (read_end, stream), closing(Console(stream, prefix=False)) as console:
        os.set_blocking(stream.fileno(), False)
        console.show(log(1, *lines))
        received = b""
        while received.count(b"\n") < len(lines):
            received += os.read(read_end, 65536)
        assert received.decode().splitlines() == lines


def test_a_compressed_file_gets_its_text_through_its_own_writer(tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "out.gz", "wt") as stream, closing(Console(stream)) as console:
        console.show(log(1, "x"))
    with gzip.open(tmp_path / "out.gz", "rt") as stream:
        assert stream.read() == "(f pid=1) x\n"


def test_a_terminal(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    attributes = termios.tcgetattr(follower)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(follower, termios.TCSANOW, attributes)
    with open(follower, "w", encoding="utf-8") as stream:
        with closing(Console(stream)) as console:
            console.show(log(1, "x"))
        assert os.read(leader, 1000) == b"\x1b[35m(f pid=1) \x1b[0mx\n"
    os.close(leader)


# --- Console: threads and slow outputs ------------------------------------------------------------------------------


class Gate(io.StringIO):
    """A stream that is stopped until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.open.wait(60)
        return super().write(text)


def console_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shoal-console"]


def test_a_stopped_output_stops_nobody_and_loses_nothing() -> None:
    gate = Gate()
    lines = [f"line {number}" for number in range(20_000)]
    with closing(Console(gate, prefix=False)) as console:
        console.show(log(1, "first"))
        assert gate.reached.wait(20)
        # Would hang here if any of this waited for the output.
        for line in lines:
            console.show(log(1, line))
        console.tick()
        assert not console.flush(timeout_s=0.01)
        gate.open.set()
        assert console.flush(timeout_s=30)
        assert gate.getvalue().splitlines() == ["first", *lines]


def test_more_than_a_stopped_output_may_leave_is_dropped_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console_module, "MAX_UNWRITTEN_BYTES", 1_000)
    gate = Gate()
    with closing(Console(gate, gate, prefix=False)) as console:
        console.show(log(1, "first"))
        assert gate.reached.wait(20)
        for number in range(100):
            console.show(log(1, f"line {number}", f"and {number}"))
        gate.open.set()
        until(lambda: "are missing here" in gate.getvalue())
        console.show(log(1, "after"))
    first, *shown, notice, after = gate.getvalue().splitlines()
    assert (first, after) == ("first", "after")
    assert shown[:3] == ["line 0", "and 0", "line 1"]
    assert notice.startswith(
        f"{200 - len(shown)} lines of workers are missing here, because they came"
    )


def test_closing_does_not_wait_for_ever_for_a_stopped_output() -> None:
    gate = Gate()
    console = Console(gate, prefix=False)
    console.show(log(1, "x"))
    assert gate.reached.wait(20)
    assert not console.close(timeout_s=0.01)
    gate.open.set()
    until(lambda: not console_threads())
    assert gate.getvalue() == "x\n"


def test_after_close_nothing_is_shown() -> None:
    out = io.StringIO()
    console = Console(out, prefix=False)
    console.show(log(1, "before"))
    assert console.close()
    console.show(log(1, "after"))
    console.tick()
    assert console.flush()
    assert console.close()
    assert out.getvalue() == "before\n"


def test_no_thread_stays_when_there_is_nothing_to_write() -> None:
    out = io.StringIO()
    console = Console(out, prefix=False)
    assert not console_threads()
    for round_number in range(3):
        console.show(log(1, f"round {round_number}"))
        until(lambda: not console_threads())
    assert out.getvalue() == "round 0\nround 1\nround 2\n"


def test_without_a_thread_flush_and_close_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    out = io.StringIO()
    console = Console(out, prefix=False)
    console.show(log(1, "x"))
    assert console.flush()
    assert out.getvalue() == "x\n"
    console.show(log(1, "y"))
    assert console.close()
    assert out.getvalue() == "x\ny\n"


def test_a_stream_may_call_the_console() -> None:
    class Curious(io.StringIO):
        def write(self, text: str) -> int:
            if "question" in text:
                console.show(log(2, "answer"))
                assert not console.flush()
            return super().write(text)

    out = Curious()
    with closing(Console(out, prefix=False)) as console:
        console.show(log(1, "question"))
        until(lambda: "answer" in out.getvalue())
    assert out.getvalue() == "question\nanswer\n"


def test_many_threads_show_and_tick_at_once() -> None:
    out = io.StringIO()
    console = Console(out, prefix=False, repeat_window_s=0.001)
    count, threads = 2_000, 4

    def work(pid: int) -> None:
        for number in range(count):
            console.show(log(pid, f"{pid}: {number}", "shared"))
            if not number % 10:
                console.tick()

    workers = [threading.Thread(target=work, args=(pid,)) for pid in range(1, threads + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert console.close(timeout_s=30)
    lines = out.getvalue().splitlines()
    for pid in range(1, threads + 1):
        own = [line for line in lines if line.startswith(f"{pid}: ")]
        assert own == [f"{pid}: {number}" for number in range(count)]
    shared = 0
    for line in lines:
        if line == "shared":
            shared += 1
        elif match := re.fullmatch(r"shared \[repeated ([\d,]+)x by other processes\]", line):
            shared += int(match[1].replace(",", ""))
    assert shared == count * threads


def test_lines_of_other_threads_do_not_come_in_between() -> None:
    """A pipe that is read slowly, and a program that prints at the same time."""
    with pipe() as (read_end, stream):
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        with closing(Console(stream, prefix=False)) as console:
            for _ in range(50):
                console.show(log(1, *["w" * 99] * 20))
            received = bytearray()

            def read() -> None:
                while received.count(b"\n") < 1100:
                    received.extend(os.read(read_end, 700))

            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(100):
                stream.write("p" * 99 + "\n")
                stream.flush()
            reader.join(60)
        assert Counter(received.decode().splitlines()) == {"w" * 99: 1000, "p" * 99: 100}


# --- Console: the end of a program ----------------------------------------------------------------------------------


def program(text: str) -> list[str]:
    begin = """
        import atexit, sys, threading, time
        from shoal.messages.node import Log
        from shoal.runtime.console import Console
        console = Console(prefix=False)
    """
    return [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(text)]


def ran(text: str) -> str:
    done = subprocess.run(
        program(text), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_program_that_ends_at_once_shows_everything() -> None:
    assert (
        ran("console.show(Log(1, 'f', 1, ['x'] * 5000))\natexit.register(console.close)")
        == "x\n" * 5000
    )


def test_lines_that_come_while_the_program_ends_are_shown_by_close() -> None:
    text = """
        @atexit.register
        def end():
            console.show(Log(1, "f", 1, ["late"]))
            console.show(Log(2, "f", 1, ["late"]))
            assert console.close()
    """
    assert ran(text) == "late\nlate [repeated 1x by other processes]\n"


def test_workers_that_go_on_printing_do_not_keep_a_program_alive() -> None:
    text = """
        def chatter():
            while not ended.is_set():
                console.show(Log(1, "f", 1, ["chatter"]))
                time.sleep(0.001)
        ended = threading.Event()
        threading.Thread(target=chatter, daemon=True).start()
        @atexit.register
        def end():
            ended.set()
            assert console.close()
    """
    lines = ran(text).splitlines()
    assert lines
    assert set(lines) == {"chatter"}


def test_a_program_whose_output_is_cut_short_ends_quietly() -> None:
    text = """
        for number in range(20_000):
            console.show(Log(1, "f", 1, [str(number)]))
        console.close()
    """
    with subprocess.Popen(
        program(text), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = [int(running.stdout.readline()) for _ in range(10)]
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(60) == 0
    assert all(after == before + 1 for before, after in pairwise(first))
