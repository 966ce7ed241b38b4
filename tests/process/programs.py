"""Users' programs in processes of their own: started, talked to, interrupted, killed, and what they leave behind.

A program is a driver like any other. What it prints on its standard output, line by line, is for the test; what it and its
workers print on standard error is kept for the report of a failed assertion.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

import psutil

from tests.api.gates import DEADLINE_S
from tests.api.scripts import script_environment, write_script

GONE_S: Final = 5.0
"""How long what belongs to a session may outlive its driver."""

# What every program begins with. `say` is how it talks to the test. A shell that starts something in the background has it ignore
# SIGINT, and so would the programs of a test run that was started so.
PREAMBLE: Final = """
import json, os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)

def say(*words):
    print(*words, flush=True)

def say_session(context):
    say(json.dumps([context["session_dir"], context["object_store_address"]]))

"""


class Program:
    """A program that runs. Use it in a `with`: what still runs at its end is killed."""

    def __init__(
        self, folder: Path, source: str, *, variables: Mapping[str, str] | None = None
    ) -> None:
        script = write_script(folder, source)
        script.write_text(PREAMBLE + script.read_text("utf-8"), "utf-8")
        self._errors = folder / "stderr.txt"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                cwd=folder,
                env=script_environment(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def errors(self) -> str:
        """What it and its workers have written to standard error so far."""
        return self._errors.read_text("utf-8", errors="replace")

    def line(self, seconds: float = DEADLINE_S) -> str:
        """The next line that it says."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._out.fileno(), 65536) if ready else b""
            if not piece:
                how = "ended" if ready else f"said nothing for {seconds:g} s"
                raise AssertionError(
                    f"the program {how} (having said {self._buffer!r}); its stderr:\n{self.errors()}"
                )
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def expect(self, word: str, seconds: float = DEADLINE_S) -> None:
        """Its next line is `word`."""
        line = self.line(seconds)
        assert line == word, (
            f"the program said {line!r}, not {word!r}; its stderr:\n{self.errors()}"
        )

    def session(self) -> SessionFiles:
        """What it says by `say_session`."""
        return SessionFiles(*json.loads(self.line()))

    def tell(self, line: str = "") -> None:
        """Give it a line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, not to its children."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        """All processes that have been started by it, directly and indirectly, and that live now."""
        return [p for p in psutil.Process(self.pid).children(recursive=True) if is_alive(p)]

    def wait(self, exit_code: int = 0, seconds: float = DEADLINE_S) -> None:
        """Wait for its end."""
        code = self.process.wait(seconds)
        assert code == exit_code, f"the program exited with {code}; its stderr:\n{self.errors()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self._out):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    # It ended without having read what it was told.
                    continue


class SessionFiles:
    """Where a session has its files."""

    def __init__(self, folder: str, shared_memory: str) -> None:
        self.folder = Path(folder)
        self.shared_memory = Path(shared_memory)

    def exist(self) -> bool:
        """Whether anything of them is left."""
        return self.folder.exists() or self.shared_memory.exists()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_of(processes: list[psutil.Process]) -> Callable[[], bool]:
    """A condition: all of them have ended."""
    return lambda: not any(map(is_alive, processes))


def children_named(name: str) -> list[psutil.Process]:
    """The living descendants of this process with a name, as `shoal:worker`."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() == name and is_alive(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
