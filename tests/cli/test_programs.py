"""Commands about programs that have a session of their own, as `shoal.init()` without an address begins it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from shoal.errors import AuthenticationError
from shoal.messages.control import ListNodes, PutKey
from shoal.runtime.control_client import ControlClient
from shoal.runtime.joining import find_programs
from shoal.wire.session import look_path
from tests.cli.commands import LIMIT_S, Commands

PROGRAM = """
import sys, shoal
shoal.init(num_cpus=1)

@shoal.remote
def wait_for_ever(held):
    import time
    time.sleep(600)

held = shoal.put(bytes(300_000))
tasks = [wait_for_ever.remote(held) for _ in range(2)]
print("ready", flush=True)
sys.stdin.read()
"""

LOOK = """
import sys
from shoal.util import state
print(len(state.list_tasks(address=sys.argv[1])))
"""

Begin = Callable[[], int]


@pytest.fixture
def begin(shoal_command: Commands) -> Iterator[Begin]:
    """Begins a program; its pid."""
    programs: list[subprocess.Popen[str]] = []

    def run() -> int:
        programs.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=shoal_command.environ,
            )
        )
        assert programs[-1].stdout is not None
        assert programs[-1].stdout.readline() == "ready\n"
        return programs[-1].pid

    yield run
    for program in programs:
        program.communicate(timeout=LIMIT_S)


def test_the_only_program_is_asked_unless_there_is_a_cluster(
    shoal_command: Commands, begin: Begin
) -> None:
    none = shoal_command.run("status")
    assert none.code == 3
    assert "no cluster runs on this machine" in none.complained
    pid = begin()
    status = shoal_command.run("status")
    assert (status.code, status.complained) == (0, "")
    assert f"Session of the program with pid {pid}" in status.said
    assert "1 / 1 CPU" in status.said
    assert "Object store: 0 B / 0 B" not in status.said
    memory = json.loads(shoal_command.run("memory", "--format", "json").said)
    assert [one["owner_pid"] for one in memory["objects"]] == [pid] * 3
    tasks = json.loads(shoal_command.run("list", "tasks", "--format", "json").said)
    waiting = [task for task in tasks if task["state"] != "RUNNING"]
    assert len(waiting) == 1
    assert "CPU" in shoal_command.run("why", waiting[0]["task_id"]).said

    shoal_command.start_head()
    assert "Cluster" in shoal_command.run("status").said
    by_pid = shoal_command.run("status", f"--address=pid:{pid}")
    assert f"Session of the program with pid {pid}" in by_pid.said


def test_of_several_programs_one_is_meant_by_its_pid(shoal_command: Commands, begin: Begin) -> None:
    older, newer = begin(), begin()
    newest = shoal_command.run("status")
    assert f"program with pid {newer}," in newest.said
    assert f"--address=pid:{older}" in newest.complained
    assert (
        f"program with pid {older}," in shoal_command.run("status", f"--address=pid:{older}").said
    )
    assert shoal_command.program(LOOK, f"pid:{older}").said == "2\n"
    for address, complaint in (
        ("pid:1", f"those that have: pid:{newer}, pid:{older}"),
        ("pid:x", "'pid:x' is not the address of a program"),
    ):
        refused = shoal_command.run("status", f"--address={address}")
        assert refused.code != 0
        assert complaint in refused.complained
    joining = shoal_command.program(f"import shoal; shoal.init(address='pid:{older}')")
    assert "which others can look at, but not join" in joining.complained


def test_who_only_looks_can_change_nothing(shoal_command: Commands, begin: Begin) -> None:
    begin()
    (node,) = find_programs(str(shoal_command.root))
    assert os.stat(f"{node.directory}/token").st_mode & 0o077 == 0
    path = look_path(node.directory)
    with ControlClient(path, node.token()) as client, pytest.raises(ConnectionError):
        client.ask(PutKey(b"", b"key", b"value", True))
    # Another token is refused here, and this one everywhere else.
    for place, token in ((path, b"x" * 32), (node.path, node.token())):
        with (
            pytest.raises(AuthenticationError, match="token"),
            ControlClient(place, token) as client,
        ):
            client.ask(ListNodes())
    assert shoal_command.run("status").code == 0


def test_a_program_that_ends_just_now_is_told_of_as_such(
    shoal_command: Commands, begin: Begin
) -> None:
    begin()
    (node,) = find_programs(str(shoal_command.root))
    # Its files go one after the other.
    os.unlink(f"{node.directory}/token")
    status = shoal_command.run("status")
    assert status.code == 3
    assert "has ended just now" in status.complained
    assert "Traceback" not in status.complained
