"""The node daemon with real processes: registration, leases, and what it does with peers that misbehave."""

from __future__ import annotations

import os
import socket
import stat
import time

import msgspec
import psutil
import pytest

from shoal.errors import AuthenticationError
from shoal.messages.node import (
    Blocked,
    Goodbye,
    KillProcess,
    KvDelete,
    KvGet,
    KvKeys,
    KvPut,
    LeaseCancel,
    LeaseGranted,
    LeasePending,
    LeaseRefused,
    LeaseRequest,
    LeaseReturn,
    LeaseWanted,
    NodeRow,
    NodesQuery,
    PeerGone,
    RegisterDriver,
    Reply,
    Shape,
    Unblocked,
    Watch,
)
from shoal.messages.stores import QuotaGranted, QuotaRequest, QuotaReturn
from shoal.runtime.session_folder import Session, session_root, sweep_dead_sessions
from shoal.wire.framing import encode_frame
from tests.process.fake_worker import tell
from tests.process.node_client import NodeClient
from tests.process.node_sessions import JOB, ONE_CPU, UNIT, node_session, wait_for

TWO_CPUS = Shape((("CPU", 2 * UNIT),))


def test_a_session_starts_serves_and_leaves_nothing() -> None:
    with node_session() as session:
        registered = session.register().registered
        assert registered is not None
        assert registered.session_dir == session.session.directory
        assert registered.job_id == JOB.job_id
        mode = os.stat(session.head.path).st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(os.stat(session.session.directory).st_mode) == 0o700
        assert session.head.is_alive()
        begin = time.monotonic()
        session.head.stop()
        assert time.monotonic() - begin < 3
        assert session.is_gone()
        assert not session.head.is_alive()


def test_the_driver_gets_a_worker_and_gives_it_back() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        tell(lease.address, "assert os.getpid() == os.getpgid(0)")
        assert psutil.Process(lease.pid).name() == "shoal:worker"
        driver.send(LeaseReturn(lease.lease_id), LeaseReturn(lease.lease_id))
        again = session.lease(driver)
        assert again.pid == lease.pid
        assert again.lease_id != lease.lease_id


def test_the_first_workers_are_forked_before_anybody_asks() -> None:
    with node_session(prestart=2) as session:
        wait_for(lambda: len(session.processes().get("shoal:worker", ())) == 2)
        driver = session.register()
        a, b = session.lease(driver), session.lease(driver)
        assert a.pid != b.pid
        assert len(session.processes()["shoal:worker"]) == 2


def test_leases_wait_for_resources_and_can_be_cancelled() -> None:
    with node_session() as session:
        driver = session.register()
        first = session.lease(driver, TWO_CPUS)
        driver.send(LeaseRequest(101, ONE_CPU), LeaseRequest(102, ONE_CPU), LeaseCancel(101))
        driver.expect_silence(LeaseGranted, 0.1)
        driver.send(LeaseReturn(first.lease_id))
        assert driver.expect(LeaseGranted).req == 102


def test_a_blocked_worker_lends_its_cpu() -> None:
    with node_session(num_cpus=1) as session:
        driver = session.register()
        first = session.lease(driver)
        driver.send(LeaseRequest(101, ONE_CPU))
        driver.expect_silence(LeaseGranted, 0.1)
        tell(first.address, f"from {Blocked.__module__} import *; node.send(Blocked())")
        second = driver.expect(LeaseGranted)
        assert second.pid != first.pid
        tell(first.address, f"from {Unblocked.__module__} import *; node.send(Unblocked())")
        driver.send(LeaseReturn(second.lease_id), LeaseRequest(102, ONE_CPU))
        driver.expect_silence(LeaseGranted, 0.1)
        driver.send(LeaseReturn(first.lease_id))
        driver.expect(LeaseGranted)


def test_a_lease_is_asked_back_when_another_owner_waits() -> None:
    with node_session(num_cpus=1) as session:
        driver = session.register()
        lease = session.lease(driver)
        # The worker becomes an owner that waits for the CPU on which it runs.
        tell(
            lease.address,
            "from tests.process.node_sessions import *; node.send(LeaseRequest(1, ONE_CPU))",
        )
        assert driver.expect(LeaseWanted).lease_id == lease.lease_id
        driver.expect_silence(LeaseWanted, 0.3)
        driver.send(LeaseReturn(lease.lease_id))


def test_what_no_node_has_is_reported_once_and_waits() -> None:
    with node_session() as session:
        driver = session.register()
        driver.send(LeaseRequest(7, Shape((("CPU", UNIT), ("GPU", UNIT)))))
        pending = driver.expect(LeasePending)
        assert pending.req == 7
        assert "GPU 1 where this node has none" in pending.reason
        assert "num_gpus=1" in pending.reason
        driver.expect_silence(LeasePending, 0.1)


def test_gpus_are_assigned_by_instance_and_their_workers_not_used_again() -> None:
    with node_session(num_gpus=2) as session:
        driver = session.register()
        half = Shape((("CPU", 0), ("GPU", UNIT // 2)))
        a, b, c = (session.lease(driver, half) for _ in range(3))
        assert a.gpu_ids == b.gpu_ids
        assert len({*a.gpu_ids, *c.gpu_ids}) == 2
        driver.send(Watch(a.address), LeaseReturn(a.lease_id))
        assert driver.expect(PeerGone).expected


def test_a_wrong_token_is_refused() -> None:
    with node_session() as session:
        with pytest.raises(AuthenticationError, match="does not hold this session's token"):
            NodeClient(session.head.path, b"x" * 32)
        session.register()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 64,
        encode_frame(b"\xc1"),
        b"\0" * 5000,
    ],
)
def test_garbage_before_the_handshake_closes_that_connection_only(garbage: bytes) -> None:
    with node_session() as session:
        driver = session.register()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.settimeout(5)
            stranger.connect(session.head.path)
            stranger.sendall(garbage)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        wait_for(lambda: "Error" in session.head_log())
        session.lease(driver)


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (encode_frame(b"not a batch"), "does not fit its schema"),
        (encode_frame(msgspec.msgpack.encode([[10, "req", 1]])), "does not fit its schema"),
        (b"\xff\xff\xff\xff", "announces 4,294,967,295 bytes"),
        (encode_frame(msgspec.msgpack.encode([LeaseCancel(1)])), "has not registered"),
        (
            encode_frame(msgspec.msgpack.encode([RegisterDriver(1, "elsewhere/d-00000001", JOB)])),
            "a driver of this node is at local",
        ),
    ],
)
def test_garbage_after_the_handshake_closes_that_connection_only(
    frame: bytes, complaint: str
) -> None:
    with node_session() as session:
        driver = session.register()
        with session.connect("d-d0000002") as other:
            other.sock.sendall(frame)
            with pytest.raises(ConnectionError):
                other.expect(Reply)
        wait_for(lambda: complaint in session.head_log())
        session.lease(driver)


@pytest.mark.parametrize(
    "resources", [(("CPU", -1),), (("CPU", 1), ("CPU", 1)), (("GPU", 1), ("CPU", 1))]
)
def test_a_demand_that_is_none_ends_its_connection(
    resources: tuple[tuple[str, int], ...],
) -> None:
    with node_session() as session:
        driver = session.register()
        driver.send(LeaseRequest(1, Shape(resources)))
        with pytest.raises(ConnectionError):
            driver.expect(LeaseGranted)
        wait_for(lambda: "is not a demand" in session.head_log())


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ("no json", "is not one"),
        ('{"env_vars": 3}', "is not one"),
        ('{"pip": ["numpy"]}', "has pip, which this version cannot make"),
        ('{"env_vars": {"A=B": "1"}}', "cannot be an environment variable"),
        ('{"py_modules": ["/no/such"]}', "does not exist on this machine"),
    ],
)
def test_an_environment_that_cannot_be_made_is_refused(env: str, complaint: str) -> None:
    with node_session() as session:
        driver = session.register()
        driver.send(LeaseRequest(1, Shape((), env)))
        refused = driver.expect(LeaseRefused)
        assert refused.kind == "env"
        assert complaint in refused.reason
        session.lease(driver)


def test_a_stranger_cannot_register_as_a_worker() -> None:
    with node_session() as session, session.connect("w-00000001") as other:
        with pytest.raises(ConnectionError):
            other.register_worker(b"\0\0\0\1" + bytes(12))
        wait_for(lambda: "is not the worker" in session.head_log())


def test_who_watches_hears_how_a_worker_ended() -> None:
    with node_session() as session:
        driver = session.register()
        killed, crashed, left = (session.lease(driver, Shape(())) for _ in range(3))
        driver.send(*(Watch(lease.address) for lease in (killed, crashed, left)))
        os.kill(killed.pid, 9)
        gone = driver.expect(PeerGone)
        assert gone == PeerGone(killed.address, "was killed by SIGKILL", False)
        tell(crashed.address, "os.abort()", wait=False)
        assert driver.expect(PeerGone).cause == "was killed by SIGABRT"
        tell(left.address, "os._exit(3)", wait=False)
        assert driver.expect(PeerGone).cause == "exited with code 3"
        driver.send(Watch(killed.address), Watch("nowhere"))
        assert driver.expect(PeerGone).cause == "was killed by SIGKILL"
        assert "is not known to this node" in driver.expect(PeerGone).cause
        # Its lease went with it: three more fit.
        for _ in range(3):
            session.lease(driver)
            driver.send(LeaseReturn(session.lease(driver).lease_id))
            break


def test_a_client_can_have_a_worker_killed() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        driver.send(Watch(lease.address), KillProcess(lease.address, "a forced cancel"))
        gone = driver.expect(PeerGone)
        assert gone.cause == "was killed: a forced cancel"
        assert not gone.expected


def test_a_workers_own_processes_end_with_it() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        code = "import subprocess; child = subprocess.Popen(['sleep', '1000'])"
        tell(lease.address, code)
        (child,) = psutil.Process(lease.pid).children()
        driver.send(Watch(lease.address), LeaseReturn(lease.lease_id, discard=True))
        driver.expect(PeerGone)
        wait_for(lambda: not child.is_running())


def test_a_worker_that_leaves_its_group_can_still_be_killed() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        tell(lease.address, f"os.setpgid(0, {session.head.pid})")
        driver.send(Watch(lease.address), KillProcess(lease.address, "a test"))
        assert driver.expect(PeerGone).cause == "was killed: a test"
        session.lease(driver)


def test_workers_that_do_not_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER_DIES", "1")
    with node_session() as session:
        driver = session.register()
        driver.send(LeaseRequest(5, ONE_CPU))
        refused = driver.expect(LeaseRefused)
        assert (refused.req, refused.kind) == (5, "start")
        assert "3 workers in a row" in refused.reason
        assert "exited with code 7" in refused.reason


def test_workers_that_hang_at_the_start_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER_HANGS", "1")
    with node_session(settings={"worker_start_timeout_s": 0.1}) as session:
        driver = session.register()
        driver.send(LeaseRequest(5, ONE_CPU))
        assert "did not register in time" in driver.expect(LeaseRefused).reason


def test_an_environment_is_made_for_its_workers_alone(tmp_path: object) -> None:
    with node_session() as session:
        driver = session.register()
        env = msgspec.json.encode({"env_vars": {"COLOUR": "red"}, "working_dir": str(tmp_path)})
        red = session.lease(driver, Shape(ONE_CPU.resources, env.decode()))
        tell(
            red.address,
            f"assert os.environ['COLOUR'] == 'red' and os.getcwd() == {str(tmp_path)!r}",
        )
        plain = session.lease(driver)
        assert plain.pid != red.pid
        tell(plain.address, "assert 'COLOUR' not in os.environ")
        driver.send(LeaseRequest(9, Shape((), '{"working_dir":"/no/such/folder"}')))
        refused = driver.expect(LeaseRefused)
        assert refused.kind == "env"
        assert "'/no/such/folder' is not a directory" in refused.reason


def test_surplus_idle_workers_end() -> None:
    with node_session(settings={"idle_worker_s": 0.1}) as session:
        driver = session.register()
        leases = [session.lease(driver, Shape(())) for _ in range(5)]
        assert len(session.processes()["shoal:worker"]) == 5
        driver.send(*(LeaseReturn(lease.lease_id) for lease in leases))
        wait_for(lambda: len(session.processes()["shoal:worker"]) == 2)


def test_goodbye_waits_for_workers_and_their_last_lines() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        tell(lease.address, "sys.stdout.write('last words'); sys.stdout.flush()")
        req = driver.next_req()
        driver.send(Goodbye(req))
        driver.expect(Reply, lambda m: m.req == req)
        assert any(getattr(m, "lines", None) == ["last words"] for m in driver.heard)
        assert "shoal:worker" not in session.processes()


def test_goodbye_is_bounded_when_workers_do_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER_IGNORES_EXIT", "1")
    with node_session(settings={"exit_grace_s": 0.4}) as session:
        driver = session.register()
        lease = session.lease(driver)
        tell(lease.address, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
        begin = time.monotonic()
        req = driver.next_req()
        driver.send(Goodbye(req))
        driver.expect(Reply, lambda m: m.req == req)
        assert 0.3 < time.monotonic() - begin < 2


def free_cpus(client: NodeClient) -> int:
    (row,) = client.ask(NodesQuery, list[NodeRow])
    return row.available.get("CPU", 0)


def test_an_owner_that_dies_takes_the_workers_it_leased_along() -> None:
    with node_session() as session:
        driver = session.register()
        owner = session.lease(driver)
        tell(
            owner.address,
            "from tests.process.node_sessions import *; node.send(LeaseRequest(1, ONE_CPU))",
        )
        wait_for(lambda: len(session.processes()["shoal:worker"]) == 2)
        (leased,) = [p for p in session.processes()["shoal:worker"] if p.pid != owner.pid]
        wait_for(lambda: os.path.exists(f"{session.session.directory}/w-00000002.sock"))
        # The lease is the owner's, and not just asked for.
        wait_for(lambda: free_cpus(driver) == 0)
        os.kill(owner.pid, 9)
        wait_for(lambda: not leased.is_running())


def test_keys_and_values_are_kept_by_namespace() -> None:
    with node_session() as session:
        driver = session.register()
        assert driver.ask(lambda r: KvPut(r, "a", b"k1", b"1"), bool)
        assert not driver.ask(lambda r: KvPut(r, "a", b"k1", b"2", overwrite=False), bool)
        assert driver.ask(lambda r: KvPut(r, "a", b"k2", b"3"), bool)
        assert driver.ask(lambda r: KvGet(r, "a", b"k1"), bytes) == b"1"
        assert driver.ask(lambda r: KvGet(r, "b", b"k1"), bytes | None) is None
        assert driver.ask(lambda r: KvKeys(r, "a", b"k"), list[bytes]) == [b"k1", b"k2"]
        assert driver.ask(lambda r: KvDelete(r, "a", b"k", by_prefix=True), int) == 2
        assert driver.ask(lambda r: KvKeys(r, "a", b""), list[bytes]) == []


def test_nodes_tell_what_is_there_and_what_is_free() -> None:
    with node_session(resources={"slot": 3}, labels={"zone": "a"}, node_name="here") as session:
        driver = session.register()
        session.lease(driver)
        (row,) = driver.ask(NodesQuery, list[NodeRow])
        assert row.alive
        assert row.total["CPU"] == 2 * UNIT
        assert row.available["CPU"] == UNIT
        assert row.total["slot"] == 3 * UNIT
        node_id = row.node_id.hex()
        own = {"shoal.io/node-id": node_id, "ray.io/node-id": node_id}
        assert row.labels == {"zone": "a", **own}
        assert (row.name, row.pid) == ("here", session.head.pid)


def test_quotas_wait_for_room_and_explain_when_there_is_none() -> None:
    settings = {"store_full_timeout_s": 0.2, "quota_chunk_bytes": 1 << 20, "spill": False}
    with node_session(settings=settings, object_store_memory=8 << 20) as session:
        driver = session.register()
        driver.send(QuotaRequest(1, 8 << 20))
        assert driver.expect(QuotaGranted).granted == 8 << 20
        driver.send(QuotaRequest(2, 1))
        refused = driver.expect(QuotaGranted)
        assert refused.granted == 0
        assert "driver (pid" in refused.explanation
        driver.send(QuotaRequest(3, 100), QuotaReturn(2 << 20))
        assert driver.expect(QuotaGranted) == QuotaGranted(3, 1 << 20)
        driver.send(QuotaRequest(4, 1 << 30))
        assert "the whole object store has" in driver.expect(QuotaGranted).explanation


def test_half_a_greeting_is_not_waited_for_by_others() -> None:
    with node_session() as session, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow:
        slow.connect(session.head.path)
        slow.sendall(b"\x10")
        session.register()
        session.lease(session.driver)


def test_a_session_that_is_dead_is_swept_and_a_living_one_is_not() -> None:
    dead, alive = Session(), Session()
    os.close(dead.lock_fd)
    dead.lock_fd = -1
    assert sweep_dead_sessions(session_root()) == 1
    assert not os.path.exists(dead.directory)
    assert not os.path.exists(dead.shm_dir)
    assert os.path.exists(alive.directory)
    alive.remove()


def test_a_root_that_others_may_write_to_is_refused(tmp_path: os.PathLike[str]) -> None:
    os.chmod(tmp_path, 0o777)
    with pytest.raises(PermissionError, match="only this user can write"):
        Session(str(tmp_path))


def test_a_root_that_is_too_deep_is_refused(tmp_path: os.PathLike[str]) -> None:
    deep = os.path.join(tmp_path, "x" * 80)
    with pytest.raises(ValueError, match="107 bytes"):
        Session(deep)
