"""Nobody gets into a session who does not hold its token, whoever misbehaves is refused by name, and the job goes on.

One real session with a busy job, and strangers at each of its sockets: the node daemon's, the driver's, a worker's and an actor's.
(What the daemon does with them in detail is in `test_node`, what the protocol objects do in `tests/wire`.)
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import pytest

import shoal
from shoal.api import session as api_session
from shoal.messages.handshake import Challenge, Handshake, Proof
from shoal.messages.node import LeaseCancel, NodesQuery
from shoal.messages.peer import Done, Push
from shoal.runtime import current_process
from shoal.runtime.session_folder import session_root as root_of_sessions
from shoal.wire.addresses import name_of
from shoal.wire.framing import cut_frame, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, TOKEN_BYTES, ClientHandshake, proof
from shoal.wire.session import socket_path
from tests.api.counters import PlainCounter
from tests.api.gates import wait_until
from tests.process.node_client import NodeClient

pytestmark = pytest.mark.cluster(num_cpus=2)

WRONG: Final = b"w" * TOKEN_BYTES
FOUR_GB: Final = b"\xff\xff\xff\xff"
PATIENCE_S: Final = 20.0
VICTIMS: Final = ("node", "driver", "worker", "actor")
NOBODY: Final = 65534


# --- a job, and where its processes listen ----------------------------------------------------------------------------


@shoal.remote
def square(number: int) -> int:
    return number * number


@shoal.remote
def own_address() -> str:
    return current_process.require().address


@shoal.remote
class Counter(PlainCounter):
    def address(self) -> str:
        return current_process.require().address


class Job:
    """Tasks, calls and objects, one round after the other in a thread, each result checked."""

    def __init__(self) -> None:
        self.rounds = 0
        self.actor = Counter.remote()
        self._count = 0
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="the job")

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._round()
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread, by `go_on`
            self._error = error

    def _round(self) -> None:
        squares = [square.remote(n) for n in range(40)]
        calls = [self.actor.add.remote() for _ in range(10)]
        array = np.arange(50_000)
        ref = shoal.put(array)
        assert shoal.get(squares, timeout=PATIENCE_S) == [n * n for n in range(40)]
        # The same process all the time: one that was started anew would count from one.
        counted = list(range(self._count + 1, self._count + 11))
        assert shoal.get(calls, timeout=PATIENCE_S) == counted
        self._count += 10
        assert np.array_equal(shoal.get(square.remote(ref), timeout=PATIENCE_S), array * array)

    def go_on(self) -> None:
        """Wait for two rounds, so that one of them was begun and done from now on."""
        rounds = self.rounds
        wait_until(lambda: self._error or self.rounds >= rounds + 2, "the job goes on", PATIENCE_S)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Job:
        self._thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Site:
    """The session, its job, and what can be attacked."""

    def __init__(self, info: Any, job: Job) -> None:
        driver = api_session._driver
        assert driver is not None
        self.job = job
        self.token = driver.head.session.token
        self.folder = Path(info["session_dir"])
        self.shared_memory = Path(info["object_store_address"])
        self.head_pid = driver.head.pid
        self._head_path = driver.head.path
        self._driver_address = driver.process.address
        self._strangers = 0

    def address(self, victim: str) -> str:
        """The path at which a victim listens; of the workers, one that just had a task."""
        match victim:
            case "node":
                return self._head_path
            case "driver":
                address = self._driver_address
            case "worker":
                address = shoal.get(own_address.remote(), timeout=PATIENCE_S)
            case _:
                address = shoal.get(self.job.actor.address.remote(), timeout=PATIENCE_S)
        return socket_path(str(self.folder), name_of(address))

    def stranger_address(self) -> str:
        """Where a peer says that it listens: at the right place, and nobody is there."""
        self._strangers += 1
        return f"local/d-{0xABC00000 + self._strangers:08x}"

    def processes(self) -> list[psutil.Process]:
        """Head, zygote and workers."""
        head = psutil.Process(self.head_pid)
        return [head, *head.children(recursive=True)]

    def logs(self) -> str:
        """All that the head and the workers have said."""
        texts = [
            path.read_text(errors="replace") for path in sorted((self.folder / "logs").iterdir())
        ]
        return "\n".join(texts)


@pytest.fixture(scope="module")
def site(shared_cluster: Any) -> Iterator[Site]:
    with Job() as job:
        yield Site(shared_cluster, job)


# --- strangers --------------------------------------------------------------------------------------------------------


def frame(*messages: Any) -> bytes:
    return encode_frame(msgspec.msgpack.encode(list(messages)))


def connect(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    sock.connect(address)
    return sock


def says(data: bytes, *, stays: bool) -> Callable[[Site, str], None]:
    """A peer without a token says something, and waits for what becomes of it, or goes at once."""

    def attack(_: Site, address: str) -> None:
        with connect(address) as sock:
            sock.sendall(data)
            if stays:
                wait_for_the_end(sock)

    return attack


def proves_a_wrong_token(site: Site, address: str) -> None:
    """One who does not mind that the other side has the right one, as an attacker would not."""
    with connect(address) as sock:
        client = ClientHandshake(WRONG, site.stranger_address())
        sock.sendall(b"".join(client.outbox))
        challenge = read_message(sock)
        assert isinstance(challenge, Challenge)
        shown = proof(WRONG, b"client", challenge.nonce, client._nonce)
        # With a batch right behind, as clients may send it.
        sock.sendall(
            encode_frame(msgspec.msgpack.encode(Proof(shown))) + frame(Push(b"t" * 16, 0, b""))
        )
        assert "wrong token" in read_message(sock).reason
        wait_for_the_end(sock)


def knows_the_token_and_says(data: bytes, *, stays: bool) -> Callable[[Site, str], None]:
    """A peer of the session that has gone mad."""

    def attack(site: Site, address: str) -> None:
        with NodeClient(address, site.token, site.stranger_address()) as client:
            client.sock.sendall(data)
            if stays:
                wait_for_the_end(client.sock)

    return attack


def read_message(sock: socket.socket) -> Any:
    data = bytearray()
    while (payload := cut_frame(data, HANDSHAKE_BYTES)) is None:
        # Not more than it needs: what follows is for others to read.
        data += sock.recv(1) or pytest.fail("the connection ended before a frame was whole")
    return msgspec.msgpack.decode(payload, type=Handshake)


def wait_for_the_end(sock: socket.socket) -> None:
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        return


NO_GREETING: Final = frame(Push(b"t" * 16, 0, b""))
HALF: Final = encode_frame(b"a message of which much is missing")[:20]

ATTACKS: Final[dict[str, tuple[Callable[[Site, str], None], str]]] = {
    "no token": (says(NO_GREETING, stays=True), "does not speak shoal's handshake"),
    "wrong token": (proves_a_wrong_token, "wrong token: the client belongs to another session"),
    "http": (says(b"GET / HTTP/1.1\r\n\r\n", stays=True), "this is not a shoal peer"),
    "garbage": (says(encode_frame(b"\xc1" * 100), stays=True), "does not speak shoal's handshake"),
    "half a greeting": (says(HALF, stays=False), "in the middle of a frame"),
    "4 GB of greeting": (says(FOUR_GB, stays=True), "announces 4,294,967,295 bytes where"),
    "half a frame": (knows_the_token_and_says(HALF, stays=False), "in the middle of a frame"),
    "4 GB": (knows_the_token_and_says(FOUR_GB, stays=True), "announces 4,294,967,295 bytes, more"),
    "no batch": (knows_the_token_and_says(encode_frame(b"x"), stays=True), "not fit its schema"),
}

NODE_TALK: Final = frame(NodesQuery(1))
LEASE_TALK: Final = frame(LeaseCancel(1))
PEER_TALK: Final = frame(Done(b"t" * 16, b"result", 1))
TASK_TALK: Final = frame(Push(b"t" * 16, 0, b"arguments"))

# What belongs into another conversation, or to the other side of this one.
MISPLACED: Final = [
    ("node", PEER_TALK, "does not fit its schema"),
    ("node", TASK_TALK, "does not fit its schema"),
    ("driver", NODE_TALK, "does not fit its schema"),
    ("driver", LEASE_TALK, "does not fit its schema"),
    ("driver", TASK_TALK, "Push"),
    ("worker", NODE_TALK, "does not fit its schema"),
    ("worker", LEASE_TALK, "does not fit its schema"),
    ("actor", NODE_TALK, "does not fit its schema"),
]


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_who_does_not_belong_here_is_refused_by_name(
    site: Site, caplog: pytest.LogCaptureFixture, victim: str, attack: str
) -> None:
    deed, complaint = ATTACKS[attack]
    with expected_complaint(site, caplog, complaint):
        deed(site, site.address(victim))


@pytest.mark.parametrize(("victim", "data", "complaint"), MISPLACED)
def test_what_belongs_into_another_conversation_is_refused_by_name(
    site: Site, caplog: pytest.LogCaptureFixture, victim: str, data: bytes, complaint: str
) -> None:
    with expected_complaint(site, caplog, complaint):
        knows_the_token_and_says(data, stays=True)(site, site.address(victim))


@pytest.mark.parametrize("victim", VICTIMS)
def test_who_says_nothing_or_half_of_it_holds_up_nobody(site: Site, victim: str) -> None:
    address = site.address(victim)
    silent, slow = connect(address), connect(address)
    with silent, slow, NodeClient(address, site.token, site.stranger_address()) as trusted:
        slow.sendall(HALF)
        trusted.sock.sendall(HALF)
        site.job.go_on()


@contextmanager
def expected_complaint(
    site: Site, caplog: pytest.LogCaptureFixture, complaint: str
) -> Iterator[None]:
    """What happens inside is complained of once more than before, in the logs of the session or by this process, and the job
    does not mind."""

    def complaints() -> int:
        return (site.logs() + caplog.text).count(complaint)

    caplog.set_level(logging.WARNING, "shoal")
    before = complaints()
    yield
    wait_until(
        lambda: complaints() > before, f"somebody complains of {complaint!r}: {site.logs()[-500:]}"
    )
    site.job.go_on()


# --- what others can get at -------------------------------------------------------------------------------------------


def test_all_sockets_are_in_the_sessions_folder(site: Site) -> None:
    """No port, no abstract name: nothing that the folder's mode does not protect."""
    for process in site.processes():
        assert process.net_connections("inet") == [], process
    listening = listening_sockets()
    found = {
        listening[inode]
        for pid in [os.getpid(), *(process.pid for process in site.processes())]
        for inode in inodes_of_sockets(pid)
        if inode in listening
    }
    assert found >= {site.address(victim) for victim in VICTIMS}
    assert {os.path.dirname(path) for path in found} == {str(site.folder)}
    (zygote,) = [process for process in site.processes() if process.name() == "shoal:zygote"]
    assert not set(inodes_of_sockets(zygote.pid)) & set(listening)


def listening_sockets() -> dict[str, str]:
    """The path of each Unix socket that listens, by its inode."""
    accepts = 0x10000
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {row[6]: row[7] if len(row) > 7 else "" for row in rows if int(row[3], 16) & accepts}


def inodes_of_sockets(pid: int) -> list[str]:
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.append(target[8:-1])
    return found


def kinds_and_modes(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Of all that is in a folder, and of itself: what it is, its mode and its owner."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        kind = stat.filemode(status.st_mode)[0]
        found[str(path.relative_to(folder))] = (kind, stat.S_IMODE(status.st_mode), status.st_uid)
    return found


def test_folders_sockets_and_objects_are_for_this_user_alone(site: Site) -> None:
    small, large = shoal.put(np.zeros(50_000)), shoal.put(np.zeros(500_000))
    session, memory = kinds_and_modes(site.folder), kinds_and_modes(site.shared_memory)
    del small, large
    assert {owner for _, _, owner in (session | memory).values()} == {os.getuid()}
    # A large object, a slab of small ones, and their locks.
    assert len([name for name in memory if name != "."]) >= 3
    assert {(kind, mode) for kind, mode, _ in memory.values()} == {("d", 0o700), ("-", 0o600)}
    folders_and_sockets = {(kind, mode) for kind, mode, _ in session.values() if kind != "-"}
    assert folders_and_sockets == {("d", 0o700), ("s", 0o600)}
    assert session["lock"][1] == 0o600


def test_notes_and_logs_are_for_this_user_alone(site: Site) -> None:
    files = {
        name: mode for name, (kind, mode, _) in kinds_and_modes(site.folder).items() if kind == "-"
    }
    assert files.keys() >= {"head", "shm", "lock", "logs/head.err"}
    assert {name: oct(mode) for name, mode in files.items() if mode != 0o600} == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_even_look(site: Site) -> None:
    for folder in (site.folder, site.shared_memory):
        looked = subprocess.run(
            ["ls", str(folder)],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Permission denied" in looked.stderr, looked


def test_each_user_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = Path(root_of_sessions())
    assert root == tmp_path / f"shoal-{os.getuid()}"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    # Somebody else was there first, and leads us elsewhere.
    root.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="only this user can write"):
        root_of_sessions()


# --- the token --------------------------------------------------------------------------------------------------------


@shoal.remote
def environment() -> dict[str, str]:
    time.sleep(0.05)
    return dict(os.environ)


def test_the_token_is_in_no_command_line_no_environment_and_no_file(site: Site) -> None:
    """It goes to the head through a pipe, and to workers by the fork."""
    token = site.token
    spellings = [token, token.hex().encode(), base64.b64encode(token), repr(token)[2:-1].encode()]
    texts = {
        f"/proc/{pid}/{name}": content(Path(f"/proc/{pid}/{name}"))
        for pid in psutil.pids()
        for name in ("cmdline", "environ")
    }
    assert any(b"shoal" in text for name, text in texts.items() if name.endswith("cmdline"))
    for number, variables in enumerate(shoal.get([environment.remote() for _ in range(4)])):
        texts[f"os.environ of task {number}"] = repr(variables).encode()
    texts["os.environ"] = repr(dict(os.environ)).encode()
    for path in [*site.folder.rglob("*"), *site.shared_memory.rglob("*")]:
        texts[str(path)] = content(path)
    assert any(name.endswith("head.err") and text for name, text in texts.items())
    told = {name for name, text in texts.items() if any(word in text for word in spellings)}
    assert told == set()


def content(path: Path) -> bytes:
    """What is in a file; nothing if it is none, is gone, or belongs to somebody else."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
