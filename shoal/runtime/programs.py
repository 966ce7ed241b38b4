"""A process of ours that another starts: how it is told what to be, how it answers, and how it is ended or left alone.

The boot record goes to its standard input, framed as everywhere; its answer comes from its standard output; what it logs goes
to a file. The pipe to its standard input stays open: for a process that was told its starter, the end of that pipe is the end of
the starter.

Guarantees: every wait is bounded; `end` leaves no process; what a process said before it died is in the error that tells of its death.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from shoal.errors import InternalError
from shoal.messages.boot import BootAnswer, BootFailed, Ready
from shoal.wire.framing import HEADER_BYTES, encode_frame
from shoal.wire.session import private

_TAIL_BYTES: Final = 4096
_LOOK_S: Final = 0.05
_MAX_ANSWER_BYTES: Final = 64 * 1024


class StartError(InternalError):
    """A process of ours could not start. `reason` is what it said itself, or ""."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Program:
    """A process that this one started. `what` is how errors call it: "the head process"."""

    def __init__(
        self,
        what: str,
        code: str,
        boot: Any,
        *,
        log_path: str,
        variables: Mapping[str, str],
        pass_fds: Collection[int],
        lifeline: bool = True,
    ) -> None:
        """`lifeline`: it was told its starter, and ends with it."""
        if not sys.executable:
            raise InternalError(
                "sys.executable is not set, so shoal cannot start processes of its own"
            )
        packages = [_root_of("shoal"), _root_of("msgspec")]
        self._what = what
        self._lifeline = lifeline
        self._log = open(log_path, "w+b", opener=private)  # noqa: SIM115 - `end` or `leave` closes it
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *packages],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **variables},
                pass_fds=pass_fds,
                # Ctrl-C in the terminal is for the starter, which then ends the session in good order.
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        self.pid = self.process.pid
        assert self.process.stdin is not None
        # If it is gone already, waiting for its answer finds out and says why.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(encode_frame(msgspec.msgpack.encode(boot)))
            self.process.stdin.flush()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The last lines that it wrote, even if its log file is gone."""
        if self._log.closed:
            return ""
        end = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), _TAIL_BYTES, max(0, end - _TAIL_BYTES))
        return tail.decode(errors="replace").strip()

    def await_ready(self, timeout_s: float, interrupted: Callable[[], None] | None = None) -> Ready:
        """Wait for its answer. `interrupted` is called again and again meanwhile, and may raise.

        Raises:
            StartError: it did not start.
        """
        process = self.process
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        data = _read_answer(process.stdout.fileno(), deadline, interrupted)
        process.stdout.close()
        said = self.log_tail()
        what_it_said = f"\nIts last words:\n{said}" if said else ""
        if data is None:
            raise StartError(f"{self._what} did not answer within {timeout_s:g} s.{what_it_said}")
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            raise StartError(
                f"{self._what} ended before it was ready (exit code {process.returncode}).{what_it_said}"
            )
        answer: Ready | BootFailed = msgspec.msgpack.decode(data, type=BootAnswer)
        if isinstance(answer, BootFailed):
            text = f"{self._what} could not start: {answer.reason}.{what_it_said}"
            raise StartError(text, answer.reason)
        return answer

    def end(self, timeout_s: float) -> None:
        """End it: by its lifeline or SIGTERM, or else by SIGKILL."""
        self.hang_up()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def hang_up(self) -> None:
        """Tell it to end, by its lifeline or SIGTERM."""
        self._close_pipes()
        if not self._lifeline:
            self.process.terminate()

    def leave(self) -> None:
        """Let it go on without this process, which is not to wait for it any more."""
        self._close_pipes()
        self._log.close()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                # What could not be written at the start cannot be flushed now.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _read_answer(fd: int, deadline: float, interrupted: Callable[[], None] | None) -> bytes | None:
    """One frame's payload; no bytes if the stream ends before, None if the time does."""
    data = b""
    wanted = HEADER_BYTES
    while len(data) < wanted:
        left_s = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([fd], [], [], min(left_s, _LOOK_S))
        if interrupted is not None:
            interrupted()
        if not ready:
            if left_s:
                continue
            return None
        piece = os.read(fd, wanted - len(data))
        if not piece:
            return b""
        data += piece
        if len(data) == HEADER_BYTES == wanted:
            wanted += min(int.from_bytes(data, "little"), _MAX_ANSWER_BYTES)
    return data[HEADER_BYTES:]


def _root_of(package: str) -> str:
    """The folder in which a package that is imported already was found."""
    file = sys.modules[package].__file__
    assert file is not None
    return os.path.dirname(os.path.dirname(os.path.abspath(file)))
