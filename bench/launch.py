"""Runs measured processes, one at a time, and minds them.

    cli ── Turn ──► Launcher.run ── spawn ──► worker (peer's interpreter) ──► peer's processes
         ◄─ Measured / Failed ──       ◄── link: events, census ──

Guarantees: every row of a turn ends as exactly one Measured or Failed, whatever the peer does
(crash, hang, exit); after each process everything it started is gone; what it left behind when
it had been given time to end is named.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.census import Brood
from bench.link import Link
from bench.measure import Plan, Samples
from bench.peers import REPOSITORY, worker_environment
from bench.rows import Row

START_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 60.0
LEFTOVER_GRACE_S = 5.0
_POLL_S = 0.25
_LOG_LINES = 30


@dataclass(frozen=True, slots=True)
class Measured:
    row: Row
    samples: Samples


@dataclass(frozen=True, slots=True)
class Failed:
    """``error`` opens with what happened; ``output`` is what the processes printed last."""

    row: Row
    error: str
    output: str


Outcome = Measured | Failed


@dataclass(slots=True)
class PeerFacts:
    """What the processes of one peer said about themselves, and how they ended."""

    version: str | None = None
    python: str | None = None
    shutdown_s: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What went wrong outside any row: a session that did not close, processes left behind."""


class _RowError(Exception):
    """The process cannot be used further; the text says what it did."""


@dataclass(slots=True)
class Launcher:
    """Starts workers with the given interpreters.

    ``prefix`` is put before the command line (a profiler); ``init`` are options of ``init`` that
    both peers are given on top of their own.
    """

    interpreters: Mapping[str, Path]
    plan: Plan
    scratch: Path
    prefix: Sequence[str] = ()
    init: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, PeerFacts] = field(default_factory=dict)

    def run(self, peer: str, rows: Sequence[Row]) -> Iterator[Outcome]:
        """Measure the rows, in another process after each row that failed."""
        left = list(rows)
        while left:
            progress = False
            for outcome in self._run_process(peer, tuple(left)):
                progress = True
                left.remove(outcome.row)
                yield outcome
            if not progress:
                raise AssertionError(f"a worker of {peer} ended without any outcome")

    def _run_process(self, peer: str, rows: Sequence[Row]) -> Iterator[Outcome]:
        brood = Brood()
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile(dir=self.scratch) as log:
            with theirs:
                process = self._spawn(peer, rows, theirs.fileno(), log)
            link = Link(ours)
            exchange = _Exchange(process, link, brood, log, bool(self.prefix))
            try:
                yield from exchange.outcomes(rows, self.facts.setdefault(peer, PeerFacts()))
            finally:
                link.close()
                if exchange.finished:
                    _wait(process, CLOSE_TIMEOUT_S)
                else:
                    process.kill()
                    process.wait()
                left_behind = brood.sweep(LEFTOVER_GRACE_S if exchange.finished else 0.0)
                if exchange.finished and left_behind:
                    self.facts[peer].troubles.append(
                        f"left behind after {rows[-1].name}: {'; '.join(left_behind)}"
                    )

    def _spawn(
        self, peer: str, rows: Sequence[Row], link_fd: int, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        command = [
            *self.prefix,
            str(self.interpreters[peer]),
            "-m",
            "bench.worker",
            *("--peer", peer),
            *("--rows", ",".join(row.name for row in rows)),
            *("--plan", self.plan.to_json()),
            *("--init", json.dumps(self.init)),
            *("--link", str(link_fd)),
        ]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=worker_environment(self.scratch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(link_fd,),
        )


@dataclass(slots=True)
class _Exchange:
    """The conversation with one worker, from its start to its last word."""

    process: subprocess.Popen[bytes]
    link: Link
    brood: Brood
    log: IO[bytes]
    profiled: bool
    finished: bool = False

    def outcomes(self, rows: Sequence[Row], facts: PeerFacts) -> Iterator[Outcome]:
        by_name = {row.name: row for row in rows}
        current: Row | None = None
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while True:
                message = self._receive(deadline, current)
                match message["event"]:
                    case "started":
                        facts.version, facts.python = message["version"], message["python"]
                    case "begin":
                        current = by_name[message["row"]]
                        deadline = time.monotonic() + current.timeout_s
                    case "census":
                        self.link.send(self.brood.memory())
                    case "measured":
                        row = by_name.pop(message["row"])
                        yield Measured(row, Samples(message["values"], message["beside"]))
                        current, deadline = None, time.monotonic() + CLOSE_TIMEOUT_S
                    case "failed":
                        row = by_name.pop(message["row"])
                        yield Failed(row, message["error"], self._output())
                        current, deadline = None, time.monotonic() + CLOSE_TIMEOUT_S
                    case "closed":
                        if "shutdown_s" in message:
                            facts.shutdown_s.append(message["shutdown_s"])
                        self.finished = True
                        return
                    case other:
                        raise AssertionError(f"unknown event {other!r} from a worker")
        except _RowError as error:
            if current is not None:
                yield Failed(current, str(error), self._output())
            elif len(by_name) == len(rows):
                # The session could not start; no row will fare better in another process.
                for row in rows:
                    yield Failed(row, str(error), self._output())
            else:
                facts.troubles.append(f"after its last row {error}\n{self._output()}")

    def _receive(self, deadline: float, current: Row | None) -> dict[str, Any]:
        while True:
            try:
                message = self.link.receive(timeout_s=_POLL_S)
            except EOFError:
                raise _RowError(self._ended()) from None
            if message is not None:
                return message
            if self.process.poll() is not None:
                # A child may hold the other end open, so there need not be an end of file.
                message = self.link.receive(timeout_s=0.0)
                if message is not None:
                    return message
                raise _RowError(self._ended())
            if time.monotonic() > deadline:
                raise _RowError(self._late(current))

    def _late(self, current: Row | None) -> str:
        if not self.profiled:  # the profiler would not pass the signal on
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1.0)  # for the worker to write its stacks
        doing = (
            f"no figure within {current.timeout_s:g} s"
            if current is not None
            else f"`init` or `shutdown` took more than {CLOSE_TIMEOUT_S:g} s"
        )
        return f"{doing}; the process was killed"

    def _ended(self) -> str:
        code = _wait(self.process, 5.0)
        if code is None:
            return "the process closed its link to the launcher, but did not end"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return f"the process {how}"

    def _output(self) -> str:
        self.log.seek(0)
        return "\n".join(self.log.read().decode(errors="replace").splitlines()[-_LOG_LINES:])


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
