"""What workers print, at the driver: what `Console` writes, whom it makes wait, and the end of a program."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from shoal.config import Config
from shoal.messages.node import Log
from shoal.runtime import console as console_module
from shoal.runtime.console import Console

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000


# --- what is written --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


# --- settings ----------------------------------------------------------------------------------------------


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
    assert last == (
        "not shown here: 2 lines of workers that matched SHOAL_DEDUP_LOGS_SKIP_REGEX; "
        "the workers' log files have everything"
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


# --- threads and slow outputs ------------------------------------------------------------------------------


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
        until(lambda: "not shown here" in gate.getvalue())
        console.show(log(1, "after"))
    first, *shown, notice, after = gate.getvalue().splitlines()
    assert (first, after) == ("first", "after")
    assert shown[:3] == ["line 0", "and 0", "line 1"]
    assert notice == (
        f"not shown here: {200 - len(shown)} lines of workers that came faster than this output took them; "
        "the workers' log files have everything"
    )


def test_the_number_of_dropped_lines_stands_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Steps(io.StringIO):
        begun = 0
        allowed = threading.Semaphore(0)

        def write(self, text: str) -> int:
            self.begun += 1
            assert self.allowed.acquire(timeout=60)
            return super().write(text)

    monkeypatch.setattr(console_module, "_BATCH_LINES", 1)
    monkeypatch.setattr(console_module, "MAX_UNWRITTEN_BYTES", 1_000)
    out = Steps()
    with closing(Console(out, out, prefix=False)) as console:
        # A line of this length counts as 250 bytes, and room for one is made when it has been written.
        for text in "abcde":
            console.show(log(1, text * 50))
        console.show(log(1, "dropped", "dropped"))
        out.allowed.release()
        until(lambda: out.begun == 2)
        console.show(log(1, "f" * 50))
        console.show(log(1, "dropped"))
        out.allowed.release(100)
    lines = out.getvalue().splitlines()
    assert [line[:25] for line in lines] == [
        *(text * 25 for text in "abcde"),
        "not shown here: 2 lines o",
        "f" * 25,
        "not shown here: 1 line of",
    ]


def test_close_writes_what_the_thread_leaves_when_the_main_thread_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    console = Console(gate, prefix=False)
    console.show(log(1, "first"))
    assert gate.reached.wait(20)
    console.show(log(1, "second"))
    monkeypatch.setattr(console_module, "_main_has_ended", lambda: True)
    # Most likely while `close` waits; it must not matter.
    opener = threading.Timer(0.05, gate.open.set)
    opener.start()
    assert console.close(timeout_s=60)
    opener.join()
    assert gate.getvalue() == "first\nsecond\n"


def test_no_thread_is_started_when_the_main_thread_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console_module, "_main_has_ended", lambda: True)
    out = io.StringIO()
    console = Console(out, prefix=False)
    console.show(log(1, "x"))
    assert not console_threads()
    assert console.close()
    assert out.getvalue() == "x\n"


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
                # At once, since waiting would be for itself.
                assert not console.flush(timeout_s=600)
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


# --- the end of a program ----------------------------------------------------------------------------------


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
        while not any(t.name == "shoal-console" and t.is_alive() for t in threading.enumerate()):
            time.sleep(0.001)
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
