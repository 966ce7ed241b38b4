"""A cluster by hand on one machine: head, two nodes, a driver that uses all three, status, stop; and what happens when something dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.wire.session import folder_name, is_alive
from tests.cli.commands import SMALL, Commands
from tests.leaks import SHARED_MEMORY

PATIENCE_S = 30

DRIVER = """
import json, sys, time
import shoal

context = shoal.init(sys.argv[1], log_to_driver=False)

@shoal.remote(num_cpus=1)
def where(seconds):
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()

found = set()
while len(found) < len([n for n in shoal.nodes() if n["Alive"]]):
    found |= set(shoal.get([where.remote(0.2) for _ in range(6)]))
print(json.dumps([sorted(found), shoal.cluster_resources()["CPU"], context["address"]]))
"""


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def family(pid: int) -> list[int]:
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def test_three_nodes_a_driver_status_and_stop(shoal_command: Commands) -> None:
    address = shoal_command.start_head("--node-name", "first").address()
    shoal_command.start_node(address, "--labels", "zone=a", "--node-name", "second")
    third = shoal_command.start_node(address, "--resources", '{"disk": 2}')
    assert f'shoal.init(address="{address}")' in third.said

    driver = shoal_command.program(DRIVER, address)
    assert driver.code == 0, driver
    used, cpus, joined = json.loads(driver.said)
    assert used == sorted(node.file.node_id for node in shoal_command.nodes())
    assert cpus == 3
    assert joined == address

    brief = shoal_command.run("status")
    assert brief.code == 0
    assert "Nodes: 3 alive" in brief.said
    assert "0 / 3 CPU" in brief.said
    assert "control.db: ok (since" in brief.said
    full = shoal_command.run("status", "-v", "--address", address)
    for line in ("first", "second", "0 / 2 disk", "labels: zone=a"):
        assert line in full.said

    pids = [pid for node in shoal_command.nodes() for pid in family(node.file.pid)]
    stopped = shoal_command.run("stop")
    assert stopped.code == 0
    assert "Stopped 3 nodes and 1 control store." in stopped.said
    assert shoal_command.left() == []
    wait_for(lambda: all(has_ended(pid) for pid in pids))


def test_the_driver_leaves_the_cluster_as_it_was(shoal_command: Commands) -> None:
    address = shoal_command.start_head().address()
    (node,) = shoal_command.nodes()
    for _ in range(2):
        assert shoal_command.program(DRIVER, address).code == 0
    assert is_alive(node.directory)
    names = [name for name in os.listdir(node.directory) if name.startswith("d-")]
    assert names == []


def test_a_driver_that_is_killed_leaves_nothing_in_the_folder(shoal_command: Commands) -> None:
    address = shoal_command.start_head().address()
    (node,) = shoal_command.nodes()
    code = f"import os, shoal; shoal.init({address!r}); shoal.put(bytes(10**6)); os.kill(os.getpid(), 9)"
    assert shoal_command.program(code).code == -signal.SIGKILL
    wait_for(lambda: not [n for n in os.listdir(node.directory) if n.startswith("d-")])


def test_files_are_for_their_user_only(shoal_command: Commands) -> None:
    shoal_command.start_head()
    (node,) = shoal_command.nodes()
    for name in ("node.json", "token"):
        mode = os.stat(f"{node.directory}/{name}").st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(os.stat(node.directory).st_mode) == 0o700


def test_the_token_is_in_no_list_of_processes(shoal_command: Commands) -> None:
    shoal_command.start_head()
    (node,) = shoal_command.nodes()
    (control,) = shoal_command.controls()
    assert control.file is not None
    for pid in (*family(node.file.pid), control.file.pid):
        assert shoal_command.environ["SHOAL_TOKEN"] not in " ".join(psutil.Process(pid).cmdline())


def test_the_first_start_makes_a_token(shoal_command: Commands) -> None:
    address = shoal_command.start_head(SHOAL_TOKEN="").address()
    path = shoal_command.home / ".shoal" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().strip()) == 64
    # The same user finds it again, and so does whoever is told the file.
    shoal_command.start_node(address, SHOAL_TOKEN="")
    elsewhere = {"SHOAL_TOKEN": "", "HOME": "/nonexistent", "SHOAL_TOKEN_FILE": str(path)}
    assert shoal_command.run("status", "--address", address, **elsewhere).code == 0


def test_nothing_is_there_to_stop(shoal_command: Commands) -> None:
    result = shoal_command.run("stop")
    assert result.code == 0
    assert "Nothing to stop" in result.said


def test_stop_leaves_the_sessions_of_programs_alone(shoal_command: Commands) -> None:
    code = (
        "import os, subprocess, sys, shoal; context = shoal.init(num_cpus=1);"
        "subprocess.run([sys.executable, '-m', 'shoal', 'stop'], check=True);"
        "print(shoal.get(shoal.remote(len).remote('abc')))"
    )
    done = shoal_command.program(code)
    assert done.code == 0, done
    assert done.said.endswith("3\n")


@pytest.mark.parametrize("force", [True, False])
def test_who_does_not_end_is_killed(shoal_command: Commands, force: bool) -> None:
    shoal_command.start_head()
    (node,) = shoal_command.nodes()
    pids = family(node.file.pid)
    os.kill(node.file.pid, signal.SIGSTOP)
    result = shoal_command.run("stop", *(["--force"] if force else ["--grace-period", "0.3"]))
    assert result.code == 0
    assert "had to be killed" in result.said + result.complained
    assert shoal_command.left() == []
    wait_for(lambda: all(has_ended(pid) for pid in pids))


def test_a_node_that_is_killed_leaves_nothing_and_the_others_go_on(shoal_command: Commands) -> None:
    address = shoal_command.start_head().address()
    shoal_command.start_node(address)
    (second,) = [node for node in shoal_command.nodes() if not node.file.is_head]
    pids = family(second.file.pid)
    shm = SHARED_MEMORY / folder_name(second.directory)
    assert shm.exists()
    os.kill(second.file.pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(second.directory) and not shm.exists())
    wait_for(lambda: all(has_ended(pid) for pid in pids))
    wait_for(lambda: "1 alive, 1 dead" in shoal_command.run("status").said)
    short = second.file.node_id[:8]
    assert f"Node {short} " in (full := shoal_command.run("status", "-v").said)
    assert "is dead: it closed its connection to the control store" in full
    listed = json.loads(shoal_command.run("list", "nodes", "--format", "json").said)
    messages = {row["node_id"]: row["state_message"] for row in listed}
    assert messages.pop(second.file.node_id).startswith("closed its connection")
    assert list(messages.values()) == [None]
    assert shoal_command.program(DRIVER, address).code == 0


def test_a_head_that_is_killed_whole_is_swept_by_stop(shoal_command: Commands) -> None:
    shoal_command.start_head()
    (node,) = shoal_command.nodes()
    (control,) = shoal_command.controls()
    assert control.file is not None
    for pid in (control.file.pid, *reversed(family(node.file.pid))):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(control.directory))
    assert shoal_command.run("stop").code == 0
    wait_for(lambda: shoal_command.left() == [])


def test_a_control_store_that_was_killed_is_started_again_and_knows_what_it_knew(
    shoal_command: Commands,
) -> None:
    address = shoal_command.start_head("--system-config", '{"control_retry_s": 60}').address()
    keep = (
        "import sys, shoal; shoal.init(sys.argv[1], namespace='n')\n"
        "@shoal.remote\n"
        "class Keeper:\n"
        "    def kept(self): return 42\n"
        "Keeper.options(name='k', lifetime='detached').remote()\n"
        "print(shoal.get(shoal.get_actor('k').kept.remote()))"
    )
    done = shoal_command.program(keep, address)
    assert done.code == 0, done
    (node,) = shoal_command.nodes()
    (control,) = shoal_command.controls()
    assert control.file is not None
    os.kill(control.file.pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(control.directory))
    # A head of the same name takes up what is left, and the old node comes back to it.
    port = address.rpartition(":")[2]
    again = shoal_command.run(
        "start", "--head", "--port", port, "--num-cpus", "0", "--object-store-memory", str(64 << 20)
    )
    assert again.code == 0, again
    assert "what it had written down is taken up" in again.said
    wait_for(lambda: "Nodes: 2 alive" in shoal_command.run("status").said)
    find = "import sys, shoal; shoal.init(sys.argv[1], namespace='n'); print(shoal.get(shoal.get_actor('k').kept.remote()))"
    found = shoal_command.program(find, address)
    assert (found.code, found.said) == (0, "42\n"), found
    assert is_alive(node.directory)


def test_block_stays_until_it_is_told_to_end(shoal_command: Commands) -> None:
    process = shoal_command.popen(
        "start",
        "--head",
        "--port",
        "0",
        "--num-cpus",
        "1",
        "--object-store-memory",
        str(64 << 20),
        "--block",
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("To end it"):
                break
        assert len(shoal_command.nodes()) == 1
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert shoal_command.left() == []


def test_block_ends_with_what_it_has_started(shoal_command: Commands) -> None:
    process = shoal_command.popen(
        "start",
        "--head",
        "--port",
        "0",
        "--num-cpus",
        "1",
        "--object-store-memory",
        str(64 << 20),
        "--block",
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("To end it"):
                break
        (node,) = shoal_command.nodes()
        os.kill(node.file.pid, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == 1
        assert "the node daemon has ended" in process.stderr.read()
    assert shoal_command.left() == []


def test_the_folder_of_sessions_may_be_named(shoal_command: Commands, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"shoal-x{os.getpid()}"
    try:
        result = shoal_command.start_head("--temp-dir", str(folder))
        assert f"export SHOAL_TMPDIR={folder}" in result.said
        assert shoal_command.nodes() == []
        status = shoal_command.run("status", SHOAL_TMPDIR=str(folder))
        assert "Nodes: 1 alive" in status.said
    finally:
        assert "Stopped 1 node" in shoal_command.run("stop", "--temp-dir", str(folder)).said
        folder.rmdir()


def test_a_head_that_fails_to_start_again_keeps_what_was_written_down(
    shoal_command: Commands,
) -> None:
    address = shoal_command.start_head().address()
    (node,) = shoal_command.nodes()
    (control,) = shoal_command.controls()
    assert control.file is not None
    for pid in (control.file.pid, *reversed(family(node.file.pid))):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(control.directory))
    port = address.rpartition(":")[2]
    with socket.create_server(("127.0.0.1", 0)) as other:
        door = ("--node-manager-port", str(other.getsockname()[1]))
        failed = shoal_command.run("start", "--head", "--port", port, *SMALL, *door)
    assert failed.code == 1
    assert "the node's door cannot be opened" in failed.complained
    again = shoal_command.run("start", "--head", "--port", port, *SMALL)
    assert again.code == 0, again
    assert "what it had written down is taken up" in again.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_ended_half_way_leaves_nothing(
    shoal_command: Commands, number: signal.Signals
) -> None:
    with shoal_command.popen("start", "--head", "--port", "0", *SMALL) as process:
        # The folder of the control store is there before its process is.
        wait_for(lambda: shoal_command.left() or process.poll() is not None)
        process.send_signal(number)
        code = process.wait(PATIENCE_S)
    if code == 0:
        # It was quicker.
        assert len(shoal_command.nodes()) == 1
        return
    assert code == 128 + number
    assert shoal_command.nodes() == []
    wait_for(lambda: shoal_command.left() == [])
