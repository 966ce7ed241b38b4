"""`shoal status` says what is demanded and not served, by shape, from all nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.commands import LIMIT_S, Commands
from tests.cli.test_by_hand import wait_for

DRIVER = """
import sys, shoal
shoal.init(address="auto", log_to_driver=False)

@shoal.remote(num_cpus=1)
def work(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.02)

@shoal.remote(num_cpus=0, resources={"disk": 1})
class OnDisk:
    pass

path = sys.argv[1]
tasks = [work.remote(path) for _ in range(6)]
nowhere = work.options(num_cpus=1, num_gpus=4).remote(path)
actors = [OnDisk.remote() for _ in range(2)]
group = shoal.util.placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
print("submitted", flush=True)
sys.stdin.read()
shoal.util.remove_placement_group(group)
shoal.cancel(nowhere)
open(path, "w").close()
shoal.get(tasks)
print("done", flush=True)
"""


@contextmanager
def driver(commands: Commands, path: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=commands.environ,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def demands(commands: Commands, *options: str) -> list[str]:
    """What `status` says from the heading on."""
    result = commands.run("status", *options)
    assert result.code == 0, result
    lines = result.said.splitlines()
    at = next(i for i, line in enumerate(lines) if "for resources" in line)
    return lines[at:]


def test_demands_are_listed_by_shape_with_counts_of_all_nodes(shoal_command: Commands) -> None:
    address = shoal_command.start_head("--node-name", "first").address()
    shoal_command.start_node(address, "--node-name", "second")
    assert demands(shoal_command) == ["Nothing waits for resources."]
    path = str(shoal_command.home / "go-on")
    with driver(shoal_command, path) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "submitted\n"
        expected = {
            "    {CPU: 1}: 4+ tasks",
            "    {CPU: 1, GPU: 4}: 1+ tasks, more than any node has",
            "    {disk: 1}: 2 actors, more than any node has",
            "    {CPU: 1} * 3 (STRICT_SPREAD): 1 placement group, more than any node has",
        }
        wait_for(lambda: set(demands(shoal_command)[1:]) == expected)
        brief = demands(shoal_command)
        assert brief[0] == "Demands that wait for resources:"
        assert brief[1] == "    {CPU: 1}: 4+ tasks"
        full = "\n".join(demands(shoal_command, "-v"))
        assert "1+ tasks at node " in full
        assert "; the oldest (work) has waited " in full
        assert "2 actors at no node; the oldest (OnDisk) has waited" in full
        assert "Actors that no node could take:" in full
        process.stdin.close()
        assert process.stdout.readline() == "done\n"
        assert process.wait(LIMIT_S) == 0
    wait_for(lambda: demands(shoal_command) == ["Nothing waits for resources."])
