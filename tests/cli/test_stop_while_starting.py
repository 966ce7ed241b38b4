"""`shoal stop` while `shoal start` has not come to an end: nothing of it is left, whoever still lives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from shoal.runtime.starters import find_starting
from shoal.wire.session import HEAD
from tests.cli.commands import SMALL, Commands

PATIENCE_S = 60
NOWHERE = ("--storage", "redis://127.0.0.1:1")
"""The control store waits for it, and the node for the control store."""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def starting(shoal_command: Commands) -> Iterator[subprocess.Popen[str]]:
    """A head that is starting, with both of its processes there."""
    root = str(shoal_command.root)
    command = ("start", "--head", "--port", "0", *SMALL, *NOWHERE)
    with shoal_command.popen(*command, SHOAL_STORAGE_RETRY_S="600") as process:
        try:
            wait_for(lambda: len(find_starting(root)) == 2)
            for each in find_starting(root):
                assert each.starter_pid == process.pid
                wait_for(lambda path=each.directory: os.path.exists(f"{path}/{HEAD}"))
            yield process
        finally:
            process.kill()


def heads(commands: Commands) -> list[int]:
    pids = []
    for each in find_starting(str(commands.root)):
        with open(f"{each.directory}/{HEAD}", encoding="ascii") as file:
            pids.append(int(file.read()))
    return pids


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_who_starts_it_is_told_to_end_and_undoes_it(
    shoal_command: Commands, starting: subprocess.Popen[str]
) -> None:
    pids = heads(shoal_command)
    stopped = shoal_command.run("stop")
    assert (stopped.code, stopped.said) == (0, "Stopped 1 node and 1 control store.\n"), stopped
    assert starting.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert shoal_command.left() == []
    wait_for(lambda: not any(map(is_running, pids)))
    assert shoal_command.run("stop").said.startswith("Nothing to stop")


@pytest.mark.parametrize("force", [False, True])
def test_what_a_killed_start_has_left_is_ended(
    shoal_command: Commands, starting: subprocess.Popen[str], force: bool
) -> None:
    pids = heads(shoal_command)
    if not force:
        starting.kill()
        starting.wait(PATIENCE_S)
    stopped = shoal_command.run("stop", *(["--force"] if force else ["--grace-period", "5"]))
    assert stopped.code == 0
    assert "Stopped 1 node and 1 control store." in stopped.said
    assert starting.wait(PATIENCE_S) == -signal.SIGKILL
    assert shoal_command.left() == []
    wait_for(lambda: not any(map(is_running, pids)))


def test_programs_of_their_own_are_not_taken_for_starting(shoal_command: Commands) -> None:
    code = (
        "import os, shoal; from shoal.runtime.starters import find_starting; shoal.init(num_cpus=1)\n"
        "print(find_starting(os.environ['SHOAL_TMPDIR']))"
    )
    assert shoal_command.program(code).said == "[]\n"
