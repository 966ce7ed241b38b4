"""Three machines, as network namespaces that a bridge connects: a head and two nodes in TLS, and a driver that uses all three."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.certificates import make_certificates
from tests.cli.commands import LIMIT_S, SMALL, TOKEN, Result

DRIVER = """
import json, sys, time
import shoal

shoal.init(sys.argv[1], log_to_driver=False)

@shoal.remote(num_cpus=1)
def where(text, seconds):
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id(), text

@shoal.remote(resources={"third": 1})
class There:
    def reverse(self, text):
        return text[::-1]

places = {n["NodeID"]: n["NodeManagerAddress"] for n in shoal.nodes()}
found = set()
while len(found) < 3:
    found |= {node for node, _ in shoal.get([where.remote("x" * 10_000, 0.2) for _ in range(6)])}
assert shoal.get(There.remote().reverse.remote("abc")) == "cba"
print(json.dumps(sorted(places[node] for node in found)))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machine:
    """A network namespace with an address, and a folder of sessions of its own."""

    def __init__(self, number: int, root: Path) -> None:
        self.name = f"shoal{os.getpid()}m{number}"
        self.address = f"10.207.9.{number}"
        self.root = root / f"m{number}"
        self.root.mkdir(mode=0o700)

    def run(self, *command: str) -> Result:
        environ = {n: v for n, v in os.environ.items() if not n.startswith("SHOAL_")} | {
            "SHOAL_TMPDIR": str(self.root),
            "SHOAL_TOKEN": TOKEN,
        }
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=environ,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def shoal(self, *arguments: str) -> Result:
        return self.run("-m", "shoal", *arguments)


@pytest.fixture
def machines(session_root: Path) -> Iterator[list[Machine]]:
    hub = f"shoal{os.getpid()}hub"
    with ExitStack() as stack:
        try:
            ip("netns", "add", hub)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        stack.callback(ip, "netns", "delete", hub)
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "link", "set", "br0", "up")
        made: list[Machine] = []
        for number in (1, 2, 3):
            machine = Machine(number, session_root)
            stack.callback(shutil.rmtree, machine.root)
            ip("netns", "add", machine.name)
            stack.callback(ip, "netns", "delete", machine.name)
            # Made where they belong: names of links in the machine's own namespace might be taken.
            ip(
                *("-n", hub, "link", "add", f"v{number}", "type", "veth"),
                *("peer", "name", "eth0", "netns", machine.name),
            )
            ip("-n", hub, "link", "set", f"v{number}", "master", "br0", "up")
            ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                ip("-n", machine.name, "link", "set", link, "up")
            stack.callback(machine.shoal, "stop", "--grace-period", "5")
            made.append(machine)
        yield made


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_three_machines(machines: list[Machine], tmp_path: Path, secure: bool) -> None:
    flags = make_certificates(tmp_path).flags() if secure else []
    first, second, third = machines
    head = first.shoal("start", "--head", "--node-ip-address", first.address, *SMALL, *flags)
    assert head.code == 0, head
    address = head.address()
    assert address == f"{first.address}:6465"
    assert "with the token of this one" in head.said
    for machine, more in ((second, ()), (third, ("--resources", "third=1"))):
        joined = machine.shoal("start", "--address", address, *SMALL, *more, *flags)
        assert joined.code == 0, joined
        # The address by which the head is reached, without being told.
        assert f" at {machine.address}:" in joined.said

    driver = first.run("-c", DRIVER, address)
    assert driver.code == 0, driver
    assert json.loads(driver.said) == [machine.address for machine in machines]
    # A driver may join through any machine that has a node.
    elsewhere = third.run("-c", DRIVER, address)
    assert elsewhere.code == 0, elsewhere

    # The node on the machine knows how the cluster is spoken with.
    status = second.shoal("status")
    assert "Nodes: 3 alive" in status.said, status
    for machine in reversed(machines):
        stopped = machine.shoal("stop")
        assert "Stopped 1 node" in stopped.said, stopped
        assert os.listdir(machine.root) == []
