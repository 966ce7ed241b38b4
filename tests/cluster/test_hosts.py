"""A cluster across hosts: three network namespaces, each with an address, a loopback and a session root of its own, by the command
line, with TLS. Needs the right to make namespaces; where there is none, the tests are skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_S = 60
PORT = 6477

_IP = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")

DRIVER = """
import time
import shoal
import numpy as np

shoal.init(address="auto")

@shoal.remote(num_cpus=1)
def make():
    time.sleep(0.5)
    return shoal.get_runtime_context().get_node_id(), np.ones(1_000_000)

@shoal.remote
def total(made):
    return float(made[1].sum())

refs = [make.remote() for _ in range(3)]
nodes = {node for node, _ in shoal.get(refs, timeout=60)}
assert shoal.get([total.remote(ref) for ref in refs], timeout=60) == [1e6] * 3
print(len(nodes), "nodes")
"""


def ip(*words: str) -> None:
    assert _IP is not None
    subprocess.run([_IP, *words], check=True, capture_output=True, timeout=PATIENCE_S)


class Host:
    """One namespace."""

    def __init__(self, number: int, tag: str, root: Path) -> None:
        self.name = f"sh{tag}{number}"
        self.address = f"10.177.{int(tag, 16) % 250}.{number}"
        self.root = root / f"m{number}"
        self.root.mkdir(mode=0o700)
        ip("netns", "add", self.name)
        ip(
            "link",
            "add",
            f"v{self.name}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.name,
        )
        ip("link", "set", f"v{self.name}", "master", f"b{tag}", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def run(self, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
        """Run Python there."""
        assert _IP is not None
        environ = {**os.environ, "HOME": str(home), "SHOAL_TMPDIR": str(self.root)}
        return subprocess.run(
            [_IP, "netns", "exec", self.name, sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environ,
            check=False,
        )

    def shoal(self, *words: str, home: Path) -> str:
        """Run a command of shoal there, which succeeds."""
        done = self.run("-m", "shoal", *words, home=home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        ip("netns", "del", self.name)


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    # Right under /tmp, because a Unix socket's path may have 107 bytes and no more.
    root = Path("/tmp") / f"shoal-hosts-{os.getpid()}"
    tag = f"{os.getpid() & 0xFFF:03x}"
    with contextlib.ExitStack() as stack:
        try:
            ip("link", "add", f"b{tag}", "type", "bridge")
        except (AssertionError, subprocess.CalledProcessError, OSError):
            pytest.skip("network namespaces cannot be made here")
        stack.callback(ip, "link", "del", f"b{tag}")
        ip("link", "set", f"b{tag}", "up")
        root.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        made = []
        for number in (1, 2, 3):
            made.append(Host(number, tag, root))
            stack.callback(made[-1].close)
        yield made


def certificates(folder: Path) -> list[str]:
    """An authority and a certificate; the options that name them."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "rsa:2048", "-nodes")
    openssl(
        "req", "-x509", *new, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt"
    )
    openssl("req", *new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", "node.csr", *signed, "-out", "node.crt")
    return [
        f"--tls-cert={folder}/node.crt",
        f"--tls-key={folder}/node.key",
        f"--tls-ca={folder}/ca.crt",
    ]


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="there is no openssl to make certificates"
)
def test_three_hosts_make_a_cluster_with_tls(hosts: list[Host], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    tls = certificates(tmp_path)
    head, *others = hosts
    place = f"{head.address}:{PORT}"
    try:
        said = head.shoal(
            "start",
            "--head",
            f"--node-ip-address={head.address}",
            f"--port={PORT}",
            "--num-cpus=1",
            *tls,
            home=home,
        )
        assert place in said
        for host in others:
            where = (f"--address={place}", f"--node-ip-address={host.address}")
            host.shoal("start", *where, "--num-cpus=1", *tls, home=home)
        for host in hosts:
            status = host.shoal("status", "-v", home=home)
            assert "Nodes: 3 alive" in status
            assert all(other.address in status for other in hosts)
        done = others[0].run("-c", DRIVER, home=home)
        assert done.stdout.strip() == "3 nodes", done.stdout + done.stderr
        plain = others[1].run(
            "-m",
            "shoal",
            "start",
            f"--address={place}",
            f"--node-ip-address={others[1].address}",
            home=home,
        )
        assert plain.returncode != 0
        assert "TLS only" in plain.stderr
    finally:
        for host in hosts:
            host.shoal("stop", home=home)
    assert not [
        path for host in hosts for path in host.root.iterdir() if path.name.startswith("s-")
    ]


def test_hosts_that_cannot_reach_the_head_say_what_to_look_at(
    hosts: list[Host], tmp_path: Path
) -> None:
    (tmp_path / ".shoal").mkdir(mode=0o700)
    token = tmp_path / ".shoal" / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    done = hosts[1].run(
        "-m",
        "shoal",
        "start",
        f"--address={hosts[0].address}:{PORT}",
        f"--node-ip-address={hosts[1].address}",
        home=tmp_path,
    )
    assert done.returncode != 0
    assert "shoal start --head" in done.stderr + done.stdout


def test_a_node_takes_the_address_by_which_it_reaches_the_head(
    hosts: list[Host], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    head, *others = hosts
    place = f"{head.address}:{PORT}"
    try:
        said = head.shoal(
            "start", "--head", f"--node-ip-address={head.address}", f"--port={PORT}", home=home
        )
        assert "with the token of this one" in said
        for host in others:
            assert f" at {host.address}:" in host.shoal("start", f"--address={place}", home=home)
    finally:
        for host in hosts:
            host.shoal("stop", home=home)
