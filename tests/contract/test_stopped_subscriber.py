"""A node that stops reading: what waits for it stays flat, and when it reads again it gets the newest and hears what it missed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from shoal.control.link import ControlError
from shoal.control.storage.memory import MemoryStorage
from shoal.messages.control import (
    ActorChanged,
    CreateActor,
    EndJob,
    GetKey,
    JobEnded,
    NodeView,
    PutKey,
    ViewChanged,
    WatchActor,
)
from shoal.messages.placement import ViewRow
from tests.contract.members import PATIENCE_S, QUICK, Node, serving, until
from tests.contract.test_control_store import JOB, spec

if TYPE_CHECKING:
    import pytest

BACKLOG, WINDOW, JOBS = 50, 20, 8
CONFIG = msgspec.structs.replace(QUICK, stream_backlog=BACKLOG, stream_window=WINDOW)


async def connected(port: int) -> tuple[Node, Node]:
    busy, stopped = Node(1, port, config=CONFIG), Node(2, port, config=CONFIG)
    for node in (busy, stopped):
        await node.link.join()
    return busy, stopped


def stop_reading(node: Node) -> asyncio.Transport:
    """Its heartbeats go on: it lives, and takes nothing."""
    connection = node.link._connection
    assert connection is not None
    transport = connection._transport
    assert transport is not None
    transport.pause_reading()
    return transport


def test_views_wait_as_one_and_the_newest_arrives() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage(), config=CONFIG) as control:
            busy, stopped = await connected(control.port)
            session = control.sessions._sessions[stopped.node_id]
            await until(lambda: not session.view_on_way)
            transport = stop_reading(stopped)
            before = len(stopped.heard(ViewChanged))
            sent_to_it = session.connection
            assert sent_to_it is not None
            for version in range(1, 5_001):
                view = ViewRow(busy.node_id, version, {"CPU": 1}, {"CPU": version})
                # As `Latest` arrives, without the pause between two that the node itself makes.
                control.store.post(busy.node_id, NodeView(view))
                if version % 100 == 0:
                    await asyncio.sleep(0.002)
            # One batch was on its way, and nothing else was added, whatever the kernel would have taken.
            assert session.view_on_way
            assert sent_to_it.pending_bytes < 1_000
            assert len(control.store.nodes.board) == 2
            transport.resume_reading()
            await stopped.hear(lambda: newest(stopped, busy) == 5_000)
            # The one that was on its way, and the newest.
            assert len(stopped.heard(ViewChanged)) - before <= 2
            busy.link.close()
            stopped.link.close()

    def newest(node: Node, of: Node) -> int:
        views = [row for order in node.heard(ViewChanged) for row in order.rows]
        return max((row.version for row in views if row.node_id == of.node_id), default=0)

    asyncio.run(scenario())


def test_events_are_bounded_and_what_was_missed_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage(), config=CONFIG) as control:
            busy, stopped = await connected(control.port)
            stopped.link.post(WatchActor(spec(1).actor_id, 5))
            await stopped.link.call(CreateActor(spec(1, max_restarts=-1), JOB.job_id, False))
            await stopped.hear(lambda: stopped.heard(ActorChanged))
            transport = stop_reading(stopped)
            session = control.sessions._sessions[stopped.node_id]
            jobs = [bytes([number]) * 16 for number in range(JOBS)]
            rounds = 2_000
            for number in range(rounds):
                for job_id in jobs:
                    busy.link.post(JobEnded(job_id, f"reason {number}"))
                if number % 50 == 0:
                    await busy.link.call(GetKey("", b""))
                    assert session.backlog <= BACKLOG + WINDOW + JOBS
            await busy.link.call(GetKey("", b""))
            assert session.backlog <= BACKLOG + WINDOW + JOBS
            assert session.connection is not None
            assert session.connection.pending_bytes < 100_000
            assert stopped.ended == []
            transport.resume_reading()
            last = f"reason {rounds - 1}"
            await stopped.hear(
                lambda: {e.job_id for e in stopped.heard(EndJob) if e.reason == last} == set(jobs)
            )
            heard = stopped.heard(EndJob)
            missed = [
                int(record.getMessage().split(" for ")[1].split()[0])
                for record in caplog.records
                if "this node was too slow for" in record.getMessage()
            ]
            # What did not arrive was counted, and told.
            assert len(heard) + sum(missed) == rounds * JOBS
            assert len(heard) < 200
            for job_id in jobs:
                order = [int(e.reason.split()[1]) for e in heard if e.job_id == job_id]
                assert order == sorted(set(order))
            assert await stopped.link.call(GetKey("", b"")) is None
            busy.link.close()
            stopped.link.close()

    asyncio.run(scenario())


def test_a_node_that_lets_orders_wait_without_end_is_given_up() -> None:
    async def scenario() -> None:
        config = msgspec.structs.replace(CONFIG, orders_backlog=500)
        async with serving(MemoryStorage(), config=config) as control:
            node = Node(1, control.port, config=CONFIG)
            await node.link.join()
            transport = stop_reading(node)
            session = control.sessions._sessions[node.node_id]
            for number in range(1, 2_000):
                if node.node_id not in control.sessions._sessions:
                    break
                await control.store.call(node.node_id, CreateActor(spec(number), JOB.job_id, False))
                await asyncio.sleep(0)
            assert node.node_id not in control.sessions._sessions
            assert session.backlog <= 520
            transport.resume_reading()
            await node.hear(lambda: node.ended)
            assert "has let 501 orders and answers wait" in node.ended[0]

    asyncio.run(scenario())


def test_answers_to_a_process_that_was_stopped_are_bounded_and_come_when_it_goes_on() -> None:
    value, most, questions = 100_000, 4 << 20, 800

    async def scenario() -> None:
        config = msgspec.structs.replace(QUICK, answers_unread_bytes=most)
        async with serving(MemoryStorage(), config=config) as control:
            await control.store.call(b"", PutKey("ns", b"large", bytes(value), True))
            asker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.contract.asker",
                str(control.port),
                str(questions),
                stdout=subprocess.PIPE,
            )
            try:
                await until(lambda: control.sessions._sessions)
                (session,) = control.sessions._sessions.values()
                await until(lambda: session.incoming.last == questions + 5)
                # What it has asked for is twenty times as much.
                assert most < session.unread_bytes <= most + value + 400 * questions
                assert session.connection is not None
                assert session.connection.pending_bytes <= most + value + 400 * questions
                asker.send_signal(signal.SIGCONT)
                out, _ = await asyncio.wait_for(asyncio.shield(asker.communicate()), PATIENCE_S)
            finally:
                if asker.returncode is None:
                    asker.kill()
                    await asker.wait()
            assert asker.returncode == 0
            answered, refused = (int(word) for word in out.split())
            assert answered + refused == questions
            assert most // value <= answered <= most // value + 2
            await until(lambda: session.unread_bytes == 0)

    asyncio.run(scenario())


def test_large_answers_leave_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.control.node_session._MOST_PENDING_BYTES", 1 << 20)
    monkeypatch.setattr("shoal.control.node_session._AT_ONCE", 4)

    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            value = bytes(1 << 20)
            await node.link.call(PutKey("ns", b"large", value, True))
            session = control.sessions._sessions[node.node_id]
            connection = session.connection
            assert connection is not None
            transport = stop_reading(node)
            answers = [node.link.call(GetKey("ns", b"large")) for _ in range(100)]
            await until(lambda: session.unread_bytes == 100 * session_size(value))
            # A turn's worth, over what was pending before it; the others are not encoded as messages yet.
            assert connection.pending_bytes <= 6 << 20
            transport.resume_reading()
            assert await asyncio.gather(*answers) == [value] * 100
            await until(lambda: session.unread_bytes == 0)
            node.link.close()

    def session_size(value: bytes) -> int:
        return len(msgspec.msgpack.encode(value))

    asyncio.run(scenario())


def test_a_node_that_lets_answers_wait_without_end_is_given_up() -> None:
    async def scenario() -> None:
        config = msgspec.structs.replace(CONFIG, orders_backlog=500)
        async with serving(MemoryStorage(), config=config) as control:
            node = Node(1, control.port, config=msgspec.structs.replace(CONFIG, stream_window=4096))
            await node.link.join()
            transport = stop_reading(node)
            session = control.sessions._sessions[node.node_id]
            puts = [node.link.call(PutKey("ns", b"%d" % n, b"v", False)) for n in range(2_000)]
            await until(lambda: node.node_id not in control.sessions._sessions)
            assert session.backlog <= 2_000
            transport.resume_reading()
            await node.hear(lambda: node.ended)
            assert "orders and answers wait" in node.ended[0]
            failed = await asyncio.gather(*puts, return_exceptions=True)
            assert all(isinstance(each, ControlError) for each in failed[-100:])

    asyncio.run(scenario())
