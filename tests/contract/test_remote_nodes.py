"""Nodes and a control store over real sockets: joining, being refused, losing connections, dying, and what others hear of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from shoal.config import Config
from shoal.control.link import ControlError, ControlUnreachable, NotAdmitted
from shoal.control.storage import Write
from shoal.control.storage.memory import MemoryPlace, MemoryStorage
from shoal.errors import AuthenticationError
from shoal.messages.control import (
    ActorChanged,
    ActorGone,
    ActorWaits,
    ClientGone,
    ClusterStatus,
    CreateActor,
    EndJob,
    FindActor,
    GetKey,
    JobEnded,
    JobStarted,
    ListEndedProcesses,
    ListJobs,
    ListNodes,
    NodeDied,
    NodeJoined,
    NodeView,
    PlaceActor,
    PutKey,
    StopActor,
    WatchActor,
)
from shoal.messages.node import UNIT, Job, Shape
from shoal.messages.placement import NodeAffinity, ViewRow
from tests.contract.members import QUICK, TOKEN, Node, node_row, serving, until
from tests.contract.servers import free_port
from tests.contract.test_control_store import JOB, spec

ONE_CPU = Shape()


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_nodes_join_and_hear_of_each_other() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            joined = await first.link.join()
            assert (joined.cluster_name, len(joined.cluster_id)) == ("test", 16)
            assert [row.node_id for row in joined.nodes] == [first.node_id]
            joined = await second.link.join()
            assert [row.node_id for row in joined.nodes] == [first.node_id, second.node_id]
            (news,) = await first.ordered(NodeJoined)
            assert news.row.node_id == second.node_id
            rows = await first.link.call(ListNodes())
            assert [row.name for row in rows] == ["node-1", "node-2"]
            await second.link.leave("was stopped")
            (died,) = await first.ordered(NodeDied)
            assert (died.row.node_id, died.cause) == (second.node_id, "was stopped")
            rows = await first.link.call(ListNodes())
            assert [(row.name, row.alive) for row in rows] == [("node-1", True), ("node-2", False)]
            assert second.ended == []
            with pytest.raises(ControlError, match="has left the cluster"):
                await second.link.call(ListNodes())
            first.link.close()

    run(scenario)


def test_every_call_has_its_answer_and_errors_are_told() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port, obey=True)
            await node.link.join()
            call = node.link.call
            assert await call(PutKey("ns", b"k", b"v", False)) is True
            assert await call(PutKey("ns", b"k", b"w", False)) is False
            assert await call(GetKey("ns", b"k")) == b"v"
            assert await call(GetKey("ns", b"none")) is None
            info = await call(CreateActor(spec(1, name="n"), JOB.job_id, False))
            assert info.class_name == "Counter"
            assert (await call(FindActor("ns", "n"))).actor_id == spec(1).actor_id
            with pytest.raises(ControlError, match="ActorAlreadyExistsError: the name 'n'"):
                await call(CreateActor(spec(2, name="n"), JOB.job_id, False))
            node.link.post(WatchActor(spec(1).actor_id, 7))
            await node.hear(
                lambda: [o.change.state for o in node.heard(ActorChanged)][-1:] == ["ALIVE"]
            )
            node.link.post(JobStarted(JOB))
            node.link.post(ClientGone(3, "a/w-1", "the worker, pid 12", "was killed by SIGKILL"))
            (job,) = await call(ListJobs())
            assert (job.job, job.node_id, job.ended) == (JOB, node.node_id, "")
            (ended,) = await call(ListEndedProcesses(10))
            assert (ended.who, ended.how) == ("the worker, pid 12", "was killed by SIGKILL")
            status = await call(ClusterStatus())
            assert (status.name, status.storage, status.storage_state) == ("test", "memory:", "ok")
            assert (status.actors, status.jobs, status.waiting) == (1, 1, [])
            node.link.close()

    run(scenario)


def test_nothing_is_lost_or_done_twice_when_connections_break() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first = Node(1, control.port, obey=True, row=node_row(1, cpus=200))
            second = Node(2, control.port)
            await first.link.join()
            await second.link.join()
            answers = []
            for number in range(60):
                made = spec(number + 1, owner=f"10.0.0.1:7000/d-{number:08x}", max_restarts=-1)
                first.link.post(WatchActor(made.actor_id, 1, made.owner))
                answers.append(first.link.call(CreateActor(made, JOB.job_id, False)))
                answers.append(first.link.call(PutKey("ns", b"%d" % number, b"v", False)))
                if number % 7 == 0:
                    control.cut()
                await asyncio.sleep(0.001)
            results = await asyncio.gather(*answers)
            # Each put was the first of its key: nothing was done twice.
            assert all(result is True for result in results[1::2])
            await first.hear(lambda: len(first.heard(PlaceActor)) == 60)
            await first.hear(
                lambda: (
                    len(
                        {
                            o.change.actor_id
                            for o in first.heard(ActorChanged)
                            if o.change.state == "ALIVE"
                        }
                    )
                    == 60
                )
            )
            placed = [order.spec.actor_id for order in first.heard(PlaceActor)]
            assert placed == sorted(placed)
            assert second.heard(PlaceActor) == []
            assert first.ended == second.ended == control.failures == []
            first.link.close()
            second.link.close()

    run(scenario)


class Away(MemoryStorage):
    """A storage that can be told to let every commit wait."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.held: list[asyncio.Future[None]] = []

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None] | None:
        durable = super().commit(writes)
        if not self.away:
            return durable
        self.held.append(asyncio.get_running_loop().create_future())
        return self.held[-1]

    def come_back(self) -> None:
        self.away = False
        for waiting in self.held:
            waiting.set_result(None)


def test_a_node_that_comes_back_while_the_storage_is_away_shows_that_it_lives() -> None:
    """It is told that it is back when the storage is, and must not be counted as dead until then."""

    async def scenario() -> None:
        storage = Away()
        async with serving(storage) as control:
            node = Node(1, control.port)
            await node.link.join()
            storage.away = True
            put = node.link.call(PutKey("ns", b"k", b"v", False))
            await until(lambda: storage.held)
            heard = 0
            on_heard = control.sessions._members.on_heard

            def count(node_id: bytes, session: int, now: int) -> str:
                nonlocal heard
                heard += 1
                return on_heard(node_id, session, now)

            control.cut()
            await until(lambda: node.link._trial is not None)
            control.sessions._members.on_heard = count  # type: ignore[method-assign]  # to see that they come
            # One is of its joining.
            await until(lambda: heard > 3)
            assert not put.done()
            storage.come_back()
            assert await put is True
            assert node.ended == control.failures == []
            node.link.close()

    run(scenario)


def test_a_node_that_does_not_come_back_is_dead_and_its_work_goes_on_elsewhere() -> None:
    async def scenario() -> None:
        config = msgspec.structs.replace(QUICK, node_reconnect_s=0.2)
        async with serving(MemoryStorage(), config=config) as control:
            first, second = Node(1, control.port, obey=True), Node(2, control.port, obey=True)
            await first.link.join()
            await second.link.join()
            here, there = "10.0.0.1:7000/d-00000001", "10.0.0.2:7000/d-00000002"
            again = spec(1, owner=here, max_restarts=1)
            once = spec(2, owner=there)
            orphan = spec(3, owner=there, detached=False, max_restarts=-1)
            second.link.post(JobStarted(Job(b"2" * 16, "ns", [], "/")))
            full = msgspec.structs.replace(ONE_CPU, resources=(("CPU", 3 * UNIT),))
            for made in (again, once, orphan):
                made = msgspec.structs.replace(made, placement_shape=full)
                # Each fills its home.
                first.link.post(NodeView(view_of(first, 0 if made.owner == here else 4)))
                first.link.post(WatchActor(made.actor_id, 1, made.owner))
                await first.link.call(CreateActor(made, JOB.job_id, False))
            assert [o.spec.actor_id for o in second.heard(PlaceActor)] != []
            placed = {o.spec.actor_id for o in await second.ordered(PlaceActor)}
            second.link._stop("the test ends it without a word")
            (died,) = await first.ordered(NodeDied)
            assert (
                died.cause
                == "closed its connection to the control store, and was not back in 0.2 s"
            )
            (end,) = await first.ordered(EndJob)
            assert (end.job_id, end.kill) == (b"2" * 16, True)
            assert end.reason.startswith("the node of its driver, node-2, died: it closed its conn")
            states = {o.change.actor_id: o.change for o in first.heard(ActorChanged)}
            dead = states[orphan.actor_id]
            assert (dead.state, dead.cause[:60]) == (
                "DEAD",
                "Its owner (a process of the node node-2) died: its node clos",
            )
            for actor_id in placed - {orphan.actor_id}:
                assert "node node-2 died: it closed its connection" in states[actor_id].cause
            first.link.close()

    def view_of(node: Node, free: int) -> ViewRow:
        return ViewRow(node.node_id, 1, node.row.total, {"CPU": free * UNIT})

    run(scenario)


def test_a_late_heartbeat_of_a_dead_session_is_refused() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            control.sessions._members.on_leave(second.node_id, 1, "sent no heartbeat for 10 s")
            await second.hear(lambda: second.ended)
            assert "was declared dead: it sent no heartbeat for 10 s" in second.ended[0]
            control.sessions._follow()
            await first.ordered(NodeDied)
            late = Node(2, control.port)
            with pytest.raises(NotAdmitted, match="Its work has been given to others"):
                await late.link.join()
            first.link.close()

    run(scenario)


def test_a_node_that_says_nothing_is_dead() -> None:
    async def scenario() -> None:
        config = msgspec.structs.replace(QUICK, node_timeout_s=0.5, node_heartbeat_s=0.1)
        async with serving(MemoryStorage(), config=config) as control:
            first, mute = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await mute.link.join()
            assert mute.link._heartbeat is not None
            mute.link._heartbeat.cancel()
            (died,) = await first.ordered(NodeDied)
            assert died.cause == "sent no heartbeat for 0.5 s"
            await mute.hear(lambda: mute.ended)
            assert "declared dead: it sent no heartbeat for 0.5 s" in mute.ended[0]
            first.link.close()

    run(scenario)


def test_who_may_not_join_hears_why() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            same_id = Node(1, control.port, session=2)
            with pytest.raises(NotAdmitted, match="duplicate node: a node with the id 0101"):
                await same_id.link.join()
            row = node_row(3)
            row.place = node.row.place
            same_place = Node(3, control.port, row=row)
            with pytest.raises(NotAdmitted, match="duplicate node: the node node-1 is in the"):
                await same_place.link.join()
            stranger = Node(4, control.port, token=b"x" * 32)
            with pytest.raises(AuthenticationError, match="does not hold this session's token"):
                await stranger.link.join()
            assert [row.name for row in await node.link.call(ListNodes())] == ["node-1"]
            node.link.close()
        nobody = Node(5, free_port())
        with pytest.raises(ControlUnreachable, match=r"tried for 0.1 s: .*Is `shoal start --head`"):
            await nobody.link.join(retry_s=0.1)

    run(scenario)


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.control.remote_link.__version__", "0.0.9")

    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            with pytest.raises(NotAdmitted, match=r"the node runs shoal 0\.0\.9, the cluster"):
                await Node(1, control.port).link.join()

    run(scenario)


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "the peer is not shoal"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh", "begins with TLS"),
        (b"shoal\x01w-12345678", "this is the control store"),
        (b"shoal\x09control\x00\x00\x00\x00", "install the same"),
        (b"sho", "the peer is not shoal"),
    ],
)
def test_what_is_no_node_loses_the_connection(
    said: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            sock = socket.create_connection(("127.0.0.1", control.port))
            with sock:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                # What it said further was not read, so that the kernel may report a reset.
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(sock.recv, 1000) == b""
            await until(lambda: logged in caplog.text)
            node = Node(1, control.port)
            await node.link.join()
            node.link.close()

    run(scenario)


def test_what_fits_nowhere_waits_until_a_node_comes_that_has_it() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            wide = Shape((("CPU", 100 * UNIT),))
            made = spec(1, owner="10.0.0.1:7000/d-00000001", placement_shape=wide, name="big")
            await node.link.call(CreateActor(made, JOB.job_id, False))
            (waits,) = await node.ordered(ActorWaits)
            assert (waits.name, waits.class_name, waits.job_id) == ("big", "Counter", JOB.job_id)
            assert waits.reason.startswith(
                "it needs CPU 100, and the only node has 4. It waits until"
            )
            status = await node.link.call(ClusterStatus())
            assert len(status.waiting) == 1
            large = Node(2, control.port, row=node_row(2, cpus=128))
            await large.link.join()
            (order,) = await large.ordered(PlaceActor)
            assert (order.spec.actor_id, order.incarnation) == (made.actor_id, 0)
            assert (await node.link.call(ClusterStatus())).waiting == []
            assert node.heard(PlaceActor) == []
            # It may also be ended while it waits.
            await node.link.call(
                CreateActor(
                    spec(2, placement_shape=Shape((("CPU", 200 * UNIT),))), JOB.job_id, False
                )
            )
            node.link.post(JobEnded(JOB.job_id, "its driver has shut down"))
            (ended,) = await large.ordered(EndJob)
            assert (ended.reason, ended.kill) == ("its driver has shut down", False)
            node.link.close()
            large.link.close()

    run(scenario)


def test_a_control_store_that_starts_anew_over_a_storage_that_keeps_nothing_takes_nobody_back() -> (
    None
):
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            port = control.port
        async with serving(MemoryStorage(), port=port):
            await node.hear(lambda: node.ended)
            assert "does not know this node any more" in node.ended[0]

    run(scenario)


def test_nodes_come_back_to_a_control_store_that_was_started_anew() -> None:
    place = MemoryPlace()

    async def scenario() -> None:
        async with serving(MemoryStorage(place)) as control:
            first, second = Node(1, control.port, obey=True), Node(2, control.port, obey=True)
            cluster_id = (await first.link.join()).cluster_id
            await second.link.join()
            assert await first.link.call(PutKey("ns", b"k", b"v", False))
            mine = spec(1, owner="10.0.0.1:7000/d-00000001", max_restarts=5)
            await first.link.call(CreateActor(mine, JOB.job_id, False))
            first.link.post(WatchActor(mine.actor_id, 1))
            await first.hear(
                lambda: [o.change.state for o in first.heard(ActorChanged)][-1:] == ["ALIVE"]
            )
            port = control.port
        # Said while nobody listens.
        put = first.link.call(PutKey("ns", b"k2", b"v", False))
        first.link.post(ActorGone(mine.actor_id, 0, "was killed by SIGKILL", False))
        first.lives.clear()
        first.orders.clear()
        async with serving(MemoryStorage(place), port=port) as control:
            assert await put is True
            (order,) = await first.ordered(PlaceActor)
            assert (order.spec.actor_id, order.incarnation) == (mine.actor_id, 1)
            # The watch did not have to be said again.
            await first.hear(
                lambda: [o.change.state for o in first.heard(ActorChanged)][-1:] == ["ALIVE"]
            )
            assert await first.link.call(GetKey("ns", b"k")) == b"v"
            rows = await second.link.call(ListNodes())
            assert sorted(row.name for row in rows) == ["node-1", "node-2"]
            assert first.link.joined is not None
            assert first.link.joined.cluster_id == cluster_id
            assert first.heard(StopActor) == second.heard(StopActor) == []
            assert first.ended == second.ended == []
            first.link.close()
            second.link.close()

    run(scenario)


def test_nobody_is_told_that_there_is_no_node_while_nodes_are_expected_back() -> None:
    place = MemoryPlace()

    async def scenario() -> None:
        async with serving(MemoryStorage(place)) as control:
            first = Node(1, control.port)
            second = Node(2, control.port, row=node_row(2, disk=1))
            await first.link.join()
            await second.link.join()
            port = control.port
        await until(lambda: second.link._returning is not None)
        assert second.link._returning is not None
        second.link._returning.cancel()
        async with serving(MemoryStorage(place), port=port):
            owner = "10.0.0.1:7000/d-00000001"
            here = spec(1, owner=owner, placement_shape=Shape((("disk", UNIT),)))
            nowhere = spec(2, owner=owner, placement_shape=Shape((("tape", UNIT),)))
            for made in (here, nowhere):
                await first.link.call(CreateActor(made, JOB.job_id, False))
            assert len((await first.link.call(ClusterStatus())).waiting) == 2
            assert first.heard(ActorWaits) == []
            await second.link._return()
            (order,) = await second.ordered(PlaceActor)
            assert order.spec.actor_id == here.actor_id
            # Now all are here, and of what still fits nowhere its driver hears.
            (waits,) = await first.ordered(ActorWaits)
            assert waits.reason.startswith("it needs tape 1, and of the 2 nodes none has any")
            first.link.close()
            second.link.close()

    run(scenario)


def test_what_happened_between_two_control_stores_is_told() -> None:
    place = MemoryPlace()

    async def scenario() -> None:
        async with serving(MemoryStorage(place)) as control:
            late, leaver = Node(1, control.port), Node(2, control.port)
            await late.link.join()
            await leaver.link.join()
            await late.ordered(NodeJoined)
            port = control.port
        await until(lambda: late.link._returning is not None)
        assert late.link._returning is not None
        late.link._returning.cancel()
        async with serving(MemoryStorage(place), port=port) as control:
            assert isinstance(await leaver.link.call(ListNodes()), list)
            newcomer = Node(3, port)
            joined = await newcomer.link.join()
            # The one that has not come back yet is not given up.
            assert {row.name for row in joined.nodes} == {"node-1", "node-2", "node-3"}
            await leaver.link.leave()
            await newcomer.ordered(NodeDied)
            await late.link._return()
            (died,) = await late.ordered(NodeDied)
            assert died.row.name == "node-2"
            (joined_now,) = await late.ordered(NodeJoined)
            assert joined_now.row.name == "node-3"
            assert late.ended == []
            late.link.close()
            newcomer.link.close()

    run(scenario)


def test_actors_go_where_their_strategy_says() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            at_second = Shape(strategy=NodeAffinity(second.node_id))
            made = spec(1, owner="10.0.0.1:7000/d-00000001", placement_shape=at_second)
            await first.link.call(CreateActor(made, JOB.job_id, False))
            (order,) = await second.ordered(PlaceActor)
            assert order.spec.actor_id == made.actor_id
            first.link.post(WatchActor(made.actor_id, 1))
            second.link.close()
            # It had no process yet, and cannot have one elsewhere.
            await first.hear(
                lambda: [o.change.state for o in first.heard(ActorChanged)][-1:] == ["DEAD"]
            )
            cause = first.heard(ActorChanged)[-1].change.cause
            assert cause.startswith("It could not be started: it may run on node 020202")
            assert "has left the cluster or died" in cause
            assert first.heard(PlaceActor) == []
            first.link.close()

    run(scenario)


def test_the_default_times_are_sound() -> None:
    config = Config()
    assert config.node_reconnect_s < config.node_timeout_s
    assert 2 * config.node_heartbeat_s < config.node_timeout_s < config.control_retry_s
    assert TOKEN
