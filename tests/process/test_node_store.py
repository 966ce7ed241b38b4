"""What processes that have died leave in the object store, and how the node gives it back."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import msgspec

from shoal.messages.node import (
    Goodbye,
    LeaseGranted,
    PeerGone,
    Reply,
    Watch,
)
from shoal.messages.state import AskTasks, Findings, Found, Inquire, Survey, TaskRow
from shoal.messages.stores import FreeOrphans, QuotaGranted, QuotaRequest, QuotaReturn
from shoal.messages.values import Location
from shoal.store import Reader
from tests.process.fake_worker import tell
from tests.process.node_client import NodeClient
from tests.process.node_sessions import NodeSession, node_session, wait_for

MB = 1 << 20
CAPACITY = 64 * MB
# Full is full here; what goes to disk is in `test_spilling`.
SETTINGS = {"store_full_timeout_s": 0.1, "quota_chunk_bytes": MB, "spill": False}

# What the worker runs: an arena with one large object and three smaller ones, each filled with its number.
MAKE_OBJECTS = """
from shoal.messages.node import *
from shoal.store import Arena
from shoal.wire.addresses import creator_at
from pathlib import Path
node.send(QuotaRequest(1, 16 << 20))
arena = Arena(Path({shm!r}), creator_at(boot.address), 16 << 20)
blocks = [arena.create(size) for size in (4 << 20, 100_000, 200_000, 300_000)]
for number, block in enumerate(blocks): block.buffer[:] = bytes([number]) * len(block.buffer)
arena.reclaim(16 << 20)
open({out!r}, "w").write(repr([(b.location.segment, b.location.offset, b.location.size) for b in blocks]))
"""


def objects_of_a_dead_worker(session: NodeSession, tmp_path: Path) -> list[Location]:
    """Where the objects are that a worker made before it was killed."""
    driver = session.driver
    lease: LeaseGranted = session.lease(driver)
    out = tmp_path / "locations"
    code = MAKE_OBJECTS.format(shm=session.session.shm_dir, out=str(out))
    tell(lease.address, f"exec({code!r}, globals())")
    driver.send(Watch(lease.address))
    os.kill(lease.pid, 9)
    driver.expect(PeerGone)
    return [Location(*fields) for fields in eval(out.read_text())]


def free_bytes(driver: NodeClient) -> int:
    """How much the node would still grant: what one request for all of it gets, at most."""
    low, high = 0, CAPACITY
    while high - low > 4096:
        middle = (low + high + 1) // 2
        driver.send(QuotaRequest(driver.next_req(), middle))
        answer = driver.expect(QuotaGranted)
        if answer.granted:
            driver.send(QuotaReturn(answer.granted))
            low = middle
        else:
            high = middle - 1
    return low


def test_what_the_dead_leave_counts_until_its_owners_free_it(tmp_path: Path) -> None:
    with node_session(settings=SETTINGS, object_store_memory=CAPACITY) as session:
        driver = session.register()
        large, *small = objects_of_a_dead_worker(session, tmp_path)
        # Only what the files take is counted, not the 16 MB that were granted.
        taken = CAPACITY - free_bytes(driver)
        assert 4.5 * MB < taken < 6 * MB
        driver.send(FreeOrphans([large]))
        taken = CAPACITY - free_bytes(driver)
        assert taken < 1.5 * MB
        assert large.segment not in os.listdir(session.session.shm_dir)
        driver.send(FreeOrphans(small))
        # All but the pages at the edges, which the node cannot know to be empty.
        assert free_bytes(driver) > CAPACITY - 5 * 4096


def test_what_somebody_still_looks_at_is_not_cleared(tmp_path: Path) -> None:
    with node_session(settings=SETTINGS, object_store_memory=CAPACITY) as session:
        driver = session.register()
        _, first, second, third = objects_of_a_dead_worker(session, tmp_path)
        reader = Reader(Path(session.session.shm_dir))
        view = reader.view(second)
        driver.send(FreeOrphans([first, second, third]))
        driver.expect_silence(PeerGone, 0.2)
        assert bytes(view) == b"\2" * 200_000
        del view
        gc.collect()
        slab = Path(session.session.shm_dir) / second.segment
        wait_for(lambda: slab.stat().st_blocks * 512 <= 4 * 4096)
        reader.close()


def test_nonsense_locations_free_nothing(tmp_path: Path) -> None:
    with node_session(settings=SETTINGS, object_store_memory=CAPACITY) as session:
        driver = session.register()
        victim = tmp_path / "victim"
        victim.write_text("precious")
        objects_of_a_dead_worker(session, tmp_path)
        before = sorted(os.listdir(session.session.shm_dir))
        driver.send(
            FreeOrphans(
                [
                    Location("../../victim", 0, 10),
                    Location(str(victim), 0, 10),
                    Location("ffffffff-0", 0, 10),
                    Location("", 0, 0),
                ]
            )
        )
        session.lease(driver)
        assert sorted(os.listdir(session.session.shm_dir)) == before
        assert victim.exists()


def test_the_end_of_a_job_frees_what_its_dead_left(tmp_path: Path) -> None:
    with node_session(settings=SETTINGS, object_store_memory=CAPACITY) as session:
        driver = session.register()
        objects_of_a_dead_worker(session, tmp_path)
        driver.send(Goodbye(driver.next_req()))
        driver.close()
        wait_for(lambda: os.listdir(session.session.shm_dir) == [])


def test_task_events_are_collected_from_all_processes_dead_or_alive() -> None:
    with node_session() as session:
        driver = session.register()
        dead, alive = session.lease(driver), session.lease(driver)
        send = (
            "from shoal.messages.node import *; "
            "node.send(Events([TaskEvent(b't' * 16, 'f', 'task', os.getpid(), 1, 2, True)]))"
        )
        tell(dead.address, send)
        driver.send(Watch(dead.address))
        os.kill(dead.pid, 9)
        driver.expect(PeerGone)
        req = driver.next_req()
        driver.send(Survey(req, AskTasks(limit=10), [], 1_000))
        # The driver is asked as well. The worker that lives does not answer: it is not waited for for ever, and is named.
        asked = driver.expect(Inquire)
        own = TaskRow(b"d" * 16, "g", "NORMAL_TASK", "FINISHED", pid=1, start_ns=3, end_ns=4)
        driver.send(Found(asked.number, Findings(tasks=[own])))
        tell(alive.address, "pass")
        reply = driver.expect(Reply, lambda m: m.req == req)
        found = msgspec.msgpack.decode(reply.result, type=Findings)
        assert {(row.name, row.pid) for row in found.tasks} == {("f", dead.pid), ("g", 1)}
        assert [f"worker (pid {alive.pid})" in who for who in found.silent] == [True]
