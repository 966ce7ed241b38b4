"""The launcher against workers that misbehave.

A fake interpreter takes the place of the peer's: a script that gets the worker's command line
and link, and then does as the test says.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from bench.census import Brood, become_subreaper, resign_as_subreaper
from bench.launch import Failed, Launcher, Measured, Outcome
from bench.measure import QUICK
from bench.rows import BY_NAME, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FIRST, SECOND = BY_NAME["task-sync"], BY_NAME["task-chain"]

PREAMBLE = """\
#!{python}
import json, os, signal, socket, subprocess, sys, time
link = socket.socket(fileno=int(sys.argv[sys.argv.index("--link") + 1]))
rows = sys.argv[sys.argv.index("--rows") + 1].split(",")
def say(event, **more):
    link.sendall(json.dumps(dict(event=event, **more)).encode() + b"\\n")
def measured(row):
    say("begin", row=row)
    say("measured", row=row, values=[1.0], beside={{}})
"""


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[bool]:
    """What the launcher's process is. No longer than these tests last: others have orphans that are not for them to reap."""
    yield become_subreaper()
    resign_as_subreaper()


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher({"shoal": tmp_path / "python"}, QUICK, tmp_path)


@pytest.fixture
def run(launcher: Launcher, tmp_path: Path) -> Callable[[str, list[Row]], list[Outcome]]:
    def run(body: str, rows: list[Row]) -> list[Outcome]:
        script = tmp_path / "python"
        script.write_text(PREAMBLE.format(python=sys.executable) + textwrap.dedent(body))
        script.chmod(0o700)
        before = psutil.Process().children(recursive=True)
        outcomes = list(launcher.run("shoal", rows))
        assert psutil.Process().children(recursive=True) == before
        return outcomes

    return run


def test_a_worker_that_behaves(launcher: Launcher, run: Callable[..., list[Outcome]]) -> None:
    outcomes = run(
        """
        say("started", version="1", python="3")
        for row in rows:
            measured(row)
        say("closed", shutdown_s=0.5)
        """,
        [FIRST, SECOND],
    )
    assert [type(outcome) for outcome in outcomes] == [Measured, Measured]
    facts = launcher.facts["shoal"]
    assert (facts.version, facts.shutdown_s, facts.troubles) == ("1", [0.5], [])


def test_rows_after_a_crash_are_measured_by_another_process(
    run: Callable[..., list[Outcome]],
) -> None:
    crashed, measured = run(
        """
        say("started", version="1", python="3")
        for row in rows:
            if row == "task-sync":
                say("begin", row=row)
                print("out of cheese", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            measured(row)
        say("closed", shutdown_s=0.0)
        """,
        [FIRST, SECOND],
    )
    assert isinstance(crashed, Failed)
    assert crashed.row is FIRST
    assert crashed.error == "the process was killed by SIGKILL"
    assert crashed.output == "out of cheese"
    assert isinstance(measured, Measured)
    assert measured.row is SECOND


def test_a_row_that_hangs_is_ended_with_all_its_children(
    run: Callable[..., list[Outcome]],
) -> None:
    late = replace(FIRST, timeout_s=0.3)
    (outcome,) = run(
        """
        say("started", version="1", python="3")
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        signal.signal(signal.SIGUSR1, lambda *_: print("stacks", flush=True))
        say("begin", row=rows[0])
        while True:
            signal.pause()
        """,
        [late],
    )
    assert isinstance(outcome, Failed)
    assert "no figure within 0.3 s" in outcome.error
    assert outcome.output == "stacks"


def test_a_session_that_cannot_start_fails_all_its_rows_at_once(
    run: Callable[..., list[Outcome]],
) -> None:
    outcomes = run("sys.exit('no such module')", [FIRST, SECOND])
    assert [outcome.row for outcome in outcomes] == [FIRST, SECOND]
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.error == "the process exited with 1"
        assert outcome.output == "no such module"


def test_a_session_that_does_not_close_is_reported_without_spoiling_its_rows(
    launcher: Launcher, run: Callable[..., list[Outcome]]
) -> None:
    (outcome,) = run(
        """
        say("started", version="1", python="3")
        measured(rows[0])
        sys.exit(3)
        """,
        [FIRST],
    )
    assert isinstance(outcome, Measured)
    (trouble,) = launcher.facts["shoal"].troubles
    assert "the process exited with 3" in trouble


def test_the_census_counts_what_the_worker_started(run: Callable[..., list[Outcome]]) -> None:
    (outcome,) = run(
        """
        say("started", version="1", python="3")
        say("begin", row=rows[0])
        child = subprocess.Popen(["sleep", "1000"])
        say("census")
        seen = json.loads(link.recv(65536))
        child.kill()
        child.wait()
        say("measured", row=rows[0], values=[seen["processes"]], beside=seen)
        say("closed", shutdown_s=0.0)
        """,
        [FIRST],
    )
    assert isinstance(outcome, Measured)
    assert outcome.samples.values == [2]
    assert outcome.samples.beside["unique_bytes"] > 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are handed over on Linux only")
def test_an_orphan_is_found_and_named(subreaper: bool) -> None:
    assert subreaper
    brood = Brood()
    parent = psutil.Popen([sys.executable, "-c", _LEAVES_AN_ORPHAN])
    parent.wait()
    (name,) = brood.sweep(grace_s=0.1)
    assert name == "sleep 1000"
    assert brood.processes() == []


_LEAVES_AN_ORPHAN = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
