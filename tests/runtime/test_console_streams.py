"""The driver's streams that lines of workers are written to: files, pipes, terminals, closed ones, and objects of users."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import logging
import os
import sys
import termios
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from shoal.messages.node import Log
from shoal.runtime.console import Console


def log(pid: int, *lines: str, stream: int = 1) -> Log:
    return Log(pid, "f", stream, list(lines))


@contextmanager
def pipe(encoding: str = "utf-8") -> Iterator[tuple[int, TextIO]]:
    """The read end, and a text stream at the write end like that of a process whose output is piped."""
    read_end, write_end = os.pipe()
    try:
        with open(write_end, "w", encoding=encoding) as stream:
            yield read_end, stream
    finally:
        os.close(read_end)


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
