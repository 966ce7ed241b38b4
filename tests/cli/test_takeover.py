"""All state in Redis: a head that is lost with its machine is taken over by another machine's, given the same storage and cluster name."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.commands import Commands
from tests.contract.servers import RedisServer, find_redis_server

KEEP = """
import sys, shoal
shoal.init(sys.argv[1], namespace="n", log_to_driver=False)

@shoal.remote(max_restarts=-1, max_task_retries=-1)
class Keeper:
    def kept(self):
        return 42

Keeper.options(name="keeper", lifetime="detached").remote()
print(shoal.get(shoal.get_actor("keeper").kept.remote()))
"""

FIND = """
import sys, shoal
shoal.init(sys.argv[1], namespace="n", log_to_driver=False)
print(shoal.get(shoal.get_actor("keeper").kept.remote(), timeout=40))
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    program = find_redis_server()
    if program is None:
        pytest.skip("there is no redis-server")
    server = RedisServer(program, tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def fresh_machine(tmp_path: Path, session_root: Path) -> Iterator[Commands]:
    """Commands that find nothing of what others have started."""
    root = session_root / "fresh"
    root.mkdir(mode=0o700)
    commands = Commands(tmp_path, root)
    yield commands
    commands.run("stop", "--grace-period", "5")
    shutil.rmtree(root)


def test_another_machine_takes_the_cluster_over(
    shoal_command: Commands, fresh_machine: Commands, redis: RedisServer
) -> None:
    arguments = ("--storage", redis.url, "--cluster-name", "kept")
    lease = {"SHOAL_STORAGE_LEASE_S": "1", "SHOAL_NODE_TIMEOUT_S": "2"}
    first = shoal_command.start_head(*arguments, **lease)
    assert shoal_command.program(KEEP, first.address()).said == "42\n"
    (control,) = shoal_command.controls()
    (node,) = shoal_command.nodes()
    assert control.file is not None
    daemon = psutil.Process(node.file.pid)
    for pid in (control.file.pid, daemon.pid, *(c.pid for c in daemon.children(recursive=True))):
        os.kill(pid, signal.SIGKILL)

    second = fresh_machine.start_head(*arguments, **lease)
    found = fresh_machine.program(FIND, second.address())
    assert (found.code, found.said) == (0, "42\n"), found
    status = fresh_machine.run("status")
    assert f"Storage: {redis.url}: ok" in status.said


def test_another_cluster_on_the_same_server_knows_nothing_of_it(
    shoal_command: Commands, redis: RedisServer
) -> None:
    first = shoal_command.start_head("--cluster-name", "one", SHOAL_STORAGE=redis.url)
    assert shoal_command.program(KEEP, first.address()).said == "42\n"
    second = shoal_command.start_head("--cluster-name", "two", SHOAL_STORAGE=redis.url)
    found = shoal_command.program(FIND, second.address())
    assert found.code == 1
    assert "keeper" in found.complained


def test_a_storage_that_is_away_is_said_after_a_while(shoal_command: Commands) -> None:
    result = shoal_command.run(
        "start",
        "--head",
        "--port",
        "0",
        "--num-cpus",
        "1",
        "--storage",
        "redis://127.0.0.1:1",
        SHOAL_STORAGE_RETRY_S="0.5",
    )
    assert result.code == 1
    assert "the control store could not start" in result.complained
    assert "127.0.0.1:1" in result.complained
    assert shoal_command.left() == []
