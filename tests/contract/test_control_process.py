"""The control store as a process: killed by SIGKILL and replaced, over SQLite and Redis, with nodes that come back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.control.link import ControlUnreachable
from shoal.messages.boot import BootFailed
from shoal.messages.control import (
    ActorChanged,
    ClusterStatus,
    CreateActor,
    GetKey,
    ListKeys,
    ListNodes,
    NodeDied,
    PlaceActor,
    PutKey,
    StopActor,
    WatchActor,
)
from tests.contract.control_process import ControlProcess, killed_at_the_end
from tests.contract.members import QUICK, Node, node_row
from tests.contract.servers import RedisServer
from tests.contract.test_control_store import JOB, spec


@pytest.fixture
def processes() -> Iterator[list[ControlProcess]]:
    with killed_at_the_end() as started:
        yield started


Start = Callable[..., ControlProcess]


@pytest.fixture(params=["sqlite", "redis"])
def start(request: pytest.FixtureRequest, tmp_path: Path, processes: list[ControlProcess]) -> Start:
    """Starts control stores one after another over one storage that outlives them."""
    if request.param == "sqlite":
        url = f"sqlite://{tmp_path}/control.db"
    else:
        server: RedisServer = request.getfixturevalue("make_redis")()
        url = server.url

    def begin(port: int = 0, **options: Any) -> ControlProcess:
        config = msgspec.structs.replace(QUICK, **{"storage_lease_s": 1.0, **options})
        folder = tmp_path / f"c-{len(processes)}"
        processes.append(ControlProcess(folder, url, port=port, config=config))
        return processes[-1].ready()

    return begin


def test_what_was_acknowledged_survives_a_kill_and_nodes_come_back(start: Start) -> None:
    async def scenario() -> None:
        control = await asyncio.to_thread(start)
        nodes = [Node(n, control.port, obey=True, row=node_row(n, cpus=50)) for n in (1, 2, 3)]
        first = nodes[0]
        for node in nodes:
            await node.link.join()
        acknowledged: dict[bytes, bool] = {}
        created: list[bytes] = []
        stop = asyncio.Event()

        async def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                key = b"%d" % number
                acknowledged[key] = await nodes[number % 3].link.call(
                    PutKey("ns", key, b"v" + key, False)
                )
                if number % 10 == 0 and number <= 200:
                    made = spec(number, owner=f"10.0.0.1:7000/d-{number:08x}", max_restarts=3)
                    await first.link.call(CreateActor(made, JOB.job_id, False))
                    first.link.post(WatchActor(made.actor_id, 1, made.owner))
                    created.append(made.actor_id)

        workers = [asyncio.create_task(work()) for _ in range(1)]
        for _ in range(3):
            before = len(acknowledged)
            async with asyncio.timeout(60):
                while len(acknowledged) < before + 40:  # noqa: ASYNC110 - progress has no event
                    await asyncio.sleep(0.005)
            await asyncio.to_thread(control.kill)
            control = await asyncio.to_thread(start, control.port)
        stop.set()
        await asyncio.gather(*workers)
        # Nothing acknowledged is lost, and nothing was done twice: each was new when it was put.
        assert all(acknowledged.values())
        keys = await first.link.call(ListKeys("ns", b""))
        assert set(keys) == set(acknowledged)
        assert await first.link.call(GetKey("ns", b"7")) == b"v7"
        rows = await first.link.call(ListNodes())
        assert sorted((row.name, row.alive) for row in rows) == [
            (f"node-{number}", True) for number in (1, 2, 3)
        ]

        def alive() -> set[bytes]:
            states = {o.change.actor_id: o.change.state for o in first.heard(ActorChanged)}
            return {actor_id for actor_id, state in states.items() if state == "ALIVE"}

        await first.hear(lambda: alive() >= set(created))
        lives = [life for node in nodes for life in node.lives]
        assert sorted(lives) == [(actor_id, 0) for actor_id in sorted(created)]
        for node in nodes:
            assert node.ended == []
            assert node.heard(StopActor) == node.heard(NodeDied) == []
        assert nodes[2].link.joined is not None
        status = await first.link.call(ClusterStatus())
        assert status.cluster_id == nodes[2].link.joined.cluster_id
        assert (status.pid, status.storage_state) == (control.process.pid, "ok")
        for node in nodes:
            node.link.close()
        assert await asyncio.to_thread(control.end) == 0
        assert not control.folder.exists()

    asyncio.run(scenario())


def test_a_node_that_died_with_the_control_store_is_given_up(start: Start) -> None:
    async def scenario() -> None:
        control = await asyncio.to_thread(start)
        first, second = Node(1, control.port, obey=True), Node(2, control.port, obey=True)
        await first.link.join()
        await second.link.join()
        made = spec(1, owner="10.0.0.2:7000/d-00000001", max_restarts=1)
        await first.link.call(CreateActor(made, JOB.job_id, False))
        await second.hear(lambda: second.lives)
        first.link.post(WatchActor(made.actor_id, 1))
        await first.hear(
            lambda: (
                first.heard(ActorChanged)[-1].change.state == "ALIVE"
                if first.heard(ActorChanged)
                else False
            )
        )
        await asyncio.to_thread(control.kill)
        second.link._stop("the test ends it without a word")
        control = await asyncio.to_thread(lambda: start(control.port, node_timeout_s=1.0))
        (died,) = await first.ordered(NodeDied)
        assert died.row.name == "node-2"
        assert died.cause == "did not come back after the control store had restarted"
        rows = await first.link.call(ListNodes())
        assert [(row.name, row.alive, row.cause, row.stopped) for row in rows] == [
            ("node-1", True, "", False),
            ("node-2", False, died.cause, False),
        ]
        (order,) = await first.ordered(PlaceActor)
        assert (order.spec.actor_id, order.incarnation) == (made.actor_id, 1)
        first.link.close()

    asyncio.run(scenario())


def test_two_control_stores_do_not_share_a_storage(
    start: Start, processes: list[ControlProcess], tmp_path: Path
) -> None:
    # On a busy machine the first may not run for a second. With a lease as short as that it would have lost the lead.
    control = start(storage_lease_s=10.0)
    # The second one waits for the end of the first, for as long as the first may merely be slow to die.
    config = msgspec.structs.replace(QUICK, storage_lease_s=1.0, storage_retry_s=0.5)
    second = ControlProcess(tmp_path / "second", _storage_of(control), config=config)
    processes.append(second)
    answer = second.read_answer()
    assert isinstance(answer, BootFailed)
    assert "another control store" in answer.reason
    assert second.wait() == 1
    assert "the control store cannot start: " in second.log_text()
    assert control.process.poll() is None


def _storage_of(control: ControlProcess) -> str:
    (line,) = [line for line in control.log_text().splitlines() if "; storage: " in line]
    return line.rpartition("; storage: ")[2]


def test_sigterm_ends_it_in_good_order_and_nodes_wait_for_the_next(start: Start) -> None:
    async def scenario() -> None:
        control = await asyncio.to_thread(start)
        node = Node(1, control.port)
        await node.link.join()
        put = node.link.call(PutKey("ns", b"k", b"v", True))
        await put
        assert await asyncio.to_thread(control.end) == 0
        assert "the control store ends: it was told to end (SIGTERM)" in control.log_text()
        got = node.link.call(GetKey("ns", b"k"))
        await asyncio.to_thread(start, control.port)
        assert await got == b"v"
        node.link.close()

    asyncio.run(scenario())


def test_a_control_store_that_was_stopped_declares_nobody_dead(start: Start) -> None:
    async def scenario() -> None:
        control = await asyncio.to_thread(lambda: start(node_timeout_s=1.0))
        config = msgspec.structs.replace(QUICK, node_timeout_s=1.0)
        nodes = [Node(number, control.port, config=config) for number in (1, 2)]
        for node in nodes:
            await node.link.join()
        control.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)
        control.process.send_signal(signal.SIGCONT)
        for node in nodes:
            assert await node.link.call(PutKey("ns", b"k", b"v", True)) in {True, False}
            assert node.ended == node.heard(NodeDied) == []
        for node in nodes:
            node.link.close()

    asyncio.run(scenario())


# --- without a storage of its own -------------------------------------------------------------------------------------


def test_a_storage_that_fails_ends_it_with_the_reason(
    make_redis: Callable[..., RedisServer], processes: list[ControlProcess], tmp_path: Path
) -> None:
    server = make_redis("--requirepass", "secret")

    async def scenario() -> None:
        config = msgspec.structs.replace(QUICK, storage_retry_s=0.5, control_retry_s=0.5)
        url = server.url.replace("redis://", "redis://:secret@")
        control = ControlProcess(tmp_path / "c", url, config=config)
        processes.append(control)
        await asyncio.to_thread(control.ready)
        node = Node(1, control.port, config=config)
        await node.link.join()
        status = await node.link.call(ClusterStatus())
        assert "secret" not in status.storage
        assert f":{server.port}" in status.storage
        await asyncio.to_thread(server.kill)
        put = node.link.call(PutKey("ns", b"k", b"v", True))
        assert await asyncio.to_thread(control.wait) == 1
        assert "the control store ends: its storage failed: " in control.log_text()
        assert "secret" not in control.log_text()
        await node.hear(lambda: node.ended)
        assert "cannot reach the control store at 127.0.0.1:" in node.ended[0]
        with pytest.raises(Exception, match="NodeDiedError: cannot reach"):
            await put
        # What failed may be started again: its folder is there.
        assert control.folder.exists()

    asyncio.run(scenario())


def test_one_that_lost_the_lead_while_it_was_stopped_ends_though_it_has_nothing_to_write(
    make_redis: Callable[..., RedisServer], processes: list[ControlProcess], tmp_path: Path
) -> None:
    url = make_redis().url
    config = msgspec.structs.replace(QUICK, storage_lease_s=1.0)
    first = ControlProcess(tmp_path / "first", url, config=config)
    processes.append(first)
    first.ready()
    first.process.send_signal(signal.SIGSTOP)
    second = ControlProcess(tmp_path / "second", url, config=config)
    processes.append(second)
    second.ready()
    first.process.send_signal(signal.SIGCONT)
    assert first.wait() == 1
    assert "does not lead cluster 'test' any more" in first.log_text()
    assert second.process.poll() is None


def test_it_ends_with_its_starter(processes: list[ControlProcess], tmp_path: Path) -> None:
    control = ControlProcess(tmp_path / "c", "memory:")
    processes.append(control)
    control.ready()
    assert control.process.stdin is not None
    control.process.stdin.close()
    assert control.wait() == 0
    assert "whoever started it has ended" in control.log_text()
    assert not control.folder.exists()


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("mysql://host", "begins with mysql:, which is unknown; the storages are: memory:, sqlite"),
        ("sqlite://relative", "names no file"),
        ("sqlite:////nowhere/at/all/file", "/nowhere/at/all"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_said_at_once(
    storage: str, reason: str, processes: list[ControlProcess], tmp_path: Path
) -> None:
    control = ControlProcess(tmp_path / "c", storage)
    processes.append(control)
    answer = control.read_answer()
    assert isinstance(answer, BootFailed)
    assert reason in answer.reason
    assert control.wait() == 1


def test_nobody_there() -> None:
    async def scenario() -> None:
        with pytest.raises(ControlUnreachable):
            await Node(1, 1).link.join(retry_s=0)

    asyncio.run(scenario())
