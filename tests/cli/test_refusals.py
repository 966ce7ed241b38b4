"""What commands say when something does not fit: each says what happened and what to do, and ends with the code for its kind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import make_certificates
from tests.cli.commands import SMALL, TOKEN, Commands

OTHER_TOKEN = "f" * 64


def test_either_a_head_or_an_address(shoal_command: Commands) -> None:
    for arguments in ((), ("--head", "--address", "127.0.0.1:1")):
        result = shoal_command.run("start", *arguments)
        assert result.code == 2
        assert "say --head to start a cluster, or --address=HOST:PORT" in result.complained


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--address", "h:1", "--port", "7"), "--port is for --head"),
        (("--address", "h:1", "--storage", "memory:"), "--storage is for --head"),
        (
            ("--head", "--node-ip-address", "0.0.0.0"),
            "others must be able to reach the node by this address",
        ),
        (("--head", "--node-ip-address", "here"), "that is no IP address"),
        (("--head", "--resources", "disk"), "is neither like"),
        (("--head", "--resources", "disk=much"), "amounts are numbers"),
        (("--head", "--labels", '{"a": 1}'), "names and values of labels are texts"),
        (("--head", "--system-config", "{"), "--system-config is no JSON"),
        (("--head", "--include-dashboard", "true"), "this release of shoal has no dashboard"),
    ],
)
def test_wrong_command_lines(
    shoal_command: Commands, arguments: tuple[str, ...], complaint: str
) -> None:
    result = shoal_command.run("start", *arguments)
    assert result.code == 2
    assert complaint in " ".join(result.complained.split())
    assert shoal_command.left() == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--system-config", '{"speed": 1}'), "_system_config has no setting 'speed'"),
        (("--resources", '{"CPU": 1}'), "say num_cpus"),
        (("--cluster-name", "a/b"), "a cluster cannot be called 'a/b'"),
        (
            ("--storage", "mongo://x"),
            "begins with mongo:, which is unknown; the storages are: memory:, sqlite",
        ),
        (("--node-ip-address", "192.0.2.1"), "this machine has no such address"),
        (("--object-store-memory", str(1 << 60)), "there is not enough shared memory"),
        (("--tls-cert", "/nowhere"), "tls_key and tls_ca are not set"),
    ],
)
def test_what_cannot_be_started(
    shoal_command: Commands, arguments: tuple[str, ...], complaint: str
) -> None:
    result = shoal_command.run("start", "--head", "--port", "0", "--num-cpus", "1", *arguments)
    assert result.code == 1
    assert complaint in result.complained
    assert shoal_command.left() == []


# --- ports and names ---------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_by_whom(shoal_command: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = shoal_command.run("start", "--head", "--port", port, *SMALL)
    assert result.code == 5
    assert f"the port {port} of 127.0.0.1 is taken by " in result.complained
    assert f"(pid {os.getpid()})" in result.complained
    assert "choose another with --port" in result.complained
    assert shoal_command.left() == []


def test_a_door_that_is_taken_is_named(shoal_command: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = shoal_command.run(
            "start", "--head", "--port", "0", "--node-manager-port", port, *SMALL
        )
    assert result.code == 1
    assert (
        f"the node's door cannot be opened at 127.0.0.1:{port}: Address already in use"
        in result.complained
    )
    assert shoal_command.left() == []


def test_a_cluster_that_runs_already_is_not_started_again(shoal_command: Commands) -> None:
    address = shoal_command.start_head().address()
    port = address.rpartition(":")[2]
    same_port = shoal_command.run("start", "--head", "--port", port, *SMALL)
    assert same_port.code == 5
    assert f"the cluster 'default' runs already at {address}" in same_port.complained
    same_name = shoal_command.run("start", "--head", "--port", "0", *SMALL)
    assert same_name.code == 5
    assert "the cluster 'default' runs already" in same_name.complained
    assert "--cluster-name" in same_name.complained
    assert len(shoal_command.nodes()) == 1
    other = shoal_command.start_head("--cluster-name", "other")
    assert other.address() != address


# --- who does not belong together ----------------------------------------------------------------------------------------


def test_an_unreachable_head(shoal_command: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"127.0.0.1:{once.getsockname()[1]}"
    quick = ("--system-config", '{"join_timeout_s": 0.2}')
    result = shoal_command.run("start", "--address", address, *SMALL, *quick)
    assert result.code == 3
    assert (
        f"no control store answers at {address} for 0.2 s: Connection refused" in result.complained
    )
    assert "Is the head started" in result.complained
    assert shoal_command.left() == []
    assert shoal_command.run("status", "--address", address).code == 3


def test_a_node_waits_for_a_head_that_comes_later(shoal_command: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = str(once.getsockname()[1])
    early = shoal_command.popen("start", "--address", f"127.0.0.1:{port}", *SMALL)
    with early:
        assert shoal_command.run("start", "--head", "--port", port, *SMALL).code == 0
        assert early.wait(30) == 0
    assert len(shoal_command.nodes()) == 2


def test_a_host_that_nobody_knows(shoal_command: Commands) -> None:
    result = shoal_command.run("start", "--address", "no-such-host.invalid:1", *SMALL)
    assert result.code == 3
    assert "names a host that is not known" in result.complained


def test_a_wrong_token(shoal_command: Commands) -> None:
    address = shoal_command.start_head().address()
    for command in (("start", *SMALL), ("status", "--temp-dir", str(shoal_command.home))):
        result = shoal_command.run(*command, "--address", address, SHOAL_TOKEN=OTHER_TOKEN)
        assert result.code == 4, result
        assert "do not belong together" in result.complained
        assert "token" in result.complained
    assert len(shoal_command.nodes()) == 1


def test_no_token(shoal_command: Commands) -> None:
    result = shoal_command.run("start", "--address", "127.0.0.1:1", SHOAL_TOKEN="")
    assert result.code == 4
    assert "there is no token: copy" in result.complained
    named = shoal_command.run("start", "--head", SHOAL_TOKEN="", SHOAL_TOKEN_FILE="/nowhere")
    assert named.code == 4
    assert "$SHOAL_TOKEN_FILE names /nowhere, which does not exist" in named.complained


def test_a_token_that_others_can_read_is_none(shoal_command: Commands) -> None:
    path = shoal_command.home / ".shoal" / "token"
    path.parent.mkdir()
    path.write_text(TOKEN)
    path.chmod(0o644)
    result = shoal_command.run("start", "--head", *SMALL, SHOAL_TOKEN="")
    assert result.code == 4
    assert f"chmod 600 {path}" in result.complained


def test_a_token_that_can_be_guessed_is_none(shoal_command: Commands) -> None:
    result = shoal_command.run("start", "--head", *SMALL, SHOAL_TOKEN="secret")
    assert result.code == 4
    assert "has 6 characters" in result.complained


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("WIRE_VERSION = 0", "the client speaks wire version 0, this process"),
        ("sys.version_info = (3, 9, 0)", "the client runs Python 3.9, this process"),
    ],
)
def test_another_version(shoal_command: Commands, change: str, complaint: str) -> None:
    address = shoal_command.start_head().address()
    module = "shoal.wire.handshake"
    name, _, value = change.partition(" = ")
    patch = (
        f"import sys, types, {module} as h\nh.sys = types.SimpleNamespace(version_info={value})"
        if name.startswith("sys.")
        else f"import {module} as h\nh.{name} = {value}"
    )
    code = f"{patch}\nfrom shoal.cli import main\nmain(['start', '--address', '{address}'])"
    result = shoal_command.program(code)
    assert result.code == 4, result
    assert complaint in result.complained
    assert len(shoal_command.nodes()) == 1


def test_somebody_else_at_the_address(shoal_command: Commands) -> None:
    greeter = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "while True:\n c, _ = s.accept(); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'); c.recv(1000); c.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", greeter], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = other.stdout.readline().strip()
        result = shoal_command.run("start", "--address", f"127.0.0.1:{port}", *SMALL)
        other.kill()
    assert result.code == 3
    assert "what answers at" in result.complained
    assert "is no control store of shoal" in result.complained


# --- TLS -------------------------------------------------------------------------------------------------------------------


def test_a_cluster_with_tls(shoal_command: Commands, tmp_path: Path) -> None:
    ours, others = make_certificates(tmp_path), make_certificates(tmp_path, "b")
    address = shoal_command.start_head(*ours.flags()).address()
    shoal_command.start_node(address, *ours.flags())
    seen = shoal_command.run("status", *ours.flags())
    assert "Nodes: 2 alive" in seen.said, seen

    plain = shoal_command.run("start", "--address", address, *SMALL)
    assert plain.code == 4
    assert "this node speaks TLS only, and the peer came without" in plain.complained
    stranger = shoal_command.run("start", "--address", address, *SMALL, *others.flags())
    assert stranger.code == 4
    assert "its certificate was not accepted" in stranger.complained
    assert len(shoal_command.nodes()) == 2


def test_a_node_with_tls_at_a_cluster_without(shoal_command: Commands, tmp_path: Path) -> None:
    address = shoal_command.start_head().address()
    flags = make_certificates(tmp_path).flags()
    result = shoal_command.run("start", "--address", address, *SMALL, *flags)
    assert result.code == 4
    assert "it does not answer in TLS" in result.complained


# --- folders ---------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used(shoal_command: Commands, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = shoal_command.run("start", "--head", "--temp-dir", str(file), *SMALL)
    assert result.code == 1
    assert str(file) in result.complained
    everybody = tmp_path / "open"
    everybody.mkdir()
    everybody.chmod(0o777)
    result = shoal_command.run("start", "--head", "--temp-dir", str(everybody), *SMALL)
    assert result.code == 1
    assert "only this user can write to" in result.complained
