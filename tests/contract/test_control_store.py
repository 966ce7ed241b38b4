"""The control store over each storage: what it answers is durable, it comes back as it was, and it waits for its storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from shoal.control.link import ControlError
from shoal.control.local_link import LocalLink
from shoal.control.restoring import ACTORS, SPECS
from shoal.control.storage import OK, Storage, StorageError, StorageState, Tables, Write
from shoal.control.store import ControlStore
from shoal.messages.control import (
    ActorChanged,
    ActorPlaced,
    ActorRuns,
    ClientGone,
    CreateActor,
    DeleteKey,
    FindActor,
    GetKey,
    JobStarted,
    KillActor,
    ListKeys,
    ListNames,
    Order,
    PlaceActor,
    PutKey,
    StopActor,
    WatchActor,
)
from shoal.messages.node import ActorSpec, Job, NodeRow, Shape
from shoal.messages.values import Inline
from tests.contract.places import Place, until
from tests.contract.servers import RedisServer
from tests.contract.test_redis import storage_at

NODE = b"n" * 16
ROW = NodeRow(NODE, True, "", "", "", {}, {}, {}, "", 0)
JOB = Job(b"j" * 16, "ns", ["/a"], "/b")


def spec(number: int, **fields: Any) -> ActorSpec:
    defaults: dict[str, Any] = {
        "actor_id": number.to_bytes(16, "big"),
        "class_name": "Counter",
        "code_id": b"c" * 16,
        "code": Inline(b"code" * 1000),
        "args": Inline(b""),
        "deps": [],
        "shape": Shape(()),
        "placement_shape": Shape(),
        "owner": "d-1.sock",
        "namespace": "ns",
        "detached": True,
    }
    return ActorSpec(**(defaults | fields))


class Head:
    """A control store with one node, whose orders are kept."""

    def __init__(self, storage: Storage) -> None:
        self.failures: list[Exception] = []
        self.orders: list[Order] = []
        self.heard = asyncio.Event()
        self.storage = storage
        self.store = ControlStore(asyncio.get_running_loop(), storage, self._on_failure)

    async def start(self) -> LocalLink:
        await self.store.load()
        return self.store.connect(ROW, self._on_order)

    def _on_order(self, order: Order) -> None:
        self.orders.append(order)
        self.heard.set()

    def _on_failure(self, error: Exception) -> None:
        self.failures.append(error)
        self.heard.set()

    async def hear(self, condition: Callable[[], bool]) -> None:
        """Wait until orders or failures make it true."""
        async with asyncio.timeout(20):
            while not condition():
                self.heard.clear()
                await self.heard.wait()

    async def ordered(self, kind: type, count: int = 1) -> list[Any]:
        """Wait for so many orders of a kind; they are taken out."""
        await self.hear(lambda: sum(isinstance(o, kind) for o in self.orders) >= count)
        found = [o for o in self.orders if isinstance(o, kind)]
        self.orders = [o for o in self.orders if not isinstance(o, kind)]
        return found


def over(place: Place, scenario: Callable[[Head, LocalLink], Any]) -> Any:
    """Run a scenario on a control store that starts over a place and ends in good order."""

    async def run() -> Any:
        head = Head(place.open())
        link = await head.start()
        try:
            return await scenario(head, link)
        finally:
            await head.store.close()
            assert head.failures == []

    return asyncio.run(run())


def test_keys_and_names_come_back(place: Place) -> None:
    async def first(head: Head, link: LocalLink) -> None:
        for key in (b"a", b"ab", b"b", b"c"):
            assert await link.call(PutKey("ns", key, b"1" + key, False))
        assert not await link.call(PutKey("ns", b"a", b"other", False))
        assert not await link.call(PutKey("ns", b"b", b"2", True))
        await link.call(PutKey("other", b"a", b"3", True))
        assert await link.call(DeleteKey("ns", b"c", False)) == 1
        await link.call(CreateActor(spec(1, name="n"), JOB.job_id, False))

    async def second(head: Head, link: LocalLink) -> None:
        assert sorted(await link.call(ListKeys("ns", b""))) == [b"a", b"ab", b"b"]
        assert await link.call(GetKey("ns", b"a")) == b"1a"
        assert await link.call(GetKey("ns", b"b")) == b"2"
        assert await link.call(GetKey("other", b"a")) == b"3"
        assert await link.call(ListNames(None)) == [("ns", "n")]
        info = await link.call(FindActor("ns", "n"))
        assert (info.actor_id, info.class_name) == (spec(1).actor_id, "Counter")
        with pytest.raises(ControlError, match="'n' is taken"):
            await link.call(CreateActor(spec(2, name="n"), JOB.job_id, False))
        assert await link.call(DeleteKey("ns", b"a", True)) == 2

    async def third(head: Head, link: LocalLink) -> None:
        assert await link.call(ListKeys("ns", b"")) == [b"b"]
        # What was loaded is with those who change it, and nobody else keeps it.
        assert head.store.restored is not None
        assert (head.store.restored.keys, head.store.restored.living) == ({}, [])
        # Nothing is left of a namespace that is empty.
        for namespace, key in (("ns", b"b"), ("other", b"a")):
            assert await link.call(DeleteKey(namespace, key, False)) == 1
        assert head.store._keys._tables == {}

    for scenario in (first, second, third):
        over(place, scenario)


def test_actors_live_on_where_their_node_claims_them(place: Place) -> None:
    ids = {number: spec(number).actor_id for number in range(1, 6)}

    async def first(head: Head, link: LocalLink) -> None:
        for number in range(1, 5):
            made = spec(number, max_restarts=1 if number == 2 else 0)
            await link.call(CreateActor(made, JOB.job_id, False))
        await head.ordered(PlaceActor, 4)
        for number in (1, 2, 3):
            link.post(ActorPlaced(ids[number], 0, f"w-{number}.sock", number))
            link.post(ActorRuns(ids[number], 0, b"", ""))
        link.post(KillActor(ids[3], True))
        await head.ordered(StopActor)

    async def second(head: Head, link: LocalLink) -> None:
        # The first is there; the third's end was ordered and perhaps not obeyed; the fifth nobody has heard of.
        head.store.on_claims(NODE, [(ids[1], 0), (ids[3], 0), (ids[5], 0)])
        stops = await head.ordered(StopActor, 2)
        assert [stop.actor_id for stop in stops] == [ids[3], ids[5]]
        # A life belongs to the node where it was sent.
        head.store.on_claims(b"another node", [(ids[2], 0)])
        head.store.on_claims_over()
        again, fresh = await head.ordered(PlaceActor, 2)
        assert (again.spec.actor_id, again.incarnation) == (ids[2], 1)
        assert again.spec == spec(2, max_restarts=1)
        assert (fresh.spec.actor_id, fresh.incarnation) == (ids[4], 0)
        for number in (1, 2, 3, 4, 5):
            link.post(WatchActor(ids[number], number))
        changes = [order.change for order in await head.ordered(ActorChanged, 5)]
        states = [(change.state, change.incarnation) for change in changes]
        assert states == [("ALIVE", 0), ("RESTARTING", 1), ("DEAD", 0), ("PENDING", 0), ("DEAD", 0)]
        assert changes[0].address == "w-1.sock"
        assert changes[2].cause == "It was killed by shoal.kill()."

    over(place, first)
    over(place, second)


def test_what_is_killed_before_it_is_created_is_dead_for_the_next_control_store_too(
    place: Place,
) -> None:
    """The kill was taken, and nobody will say it again; the creation comes to another control store."""
    made = spec(1, name="n", owner="local/d-00000001")

    async def first(head: Head, link: LocalLink) -> None:
        link.post(WatchActor(made.actor_id, 1, made.owner))
        link.post(KillActor(made.actor_id, True, made.owner))
        (changed,) = await head.ordered(ActorChanged)
        assert changed.change.state == "DEAD"

    async def second(head: Head, link: LocalLink) -> None:
        head.store.on_claims_over()
        info = await link.call(CreateActor(made, JOB.job_id, False))
        assert (info.actor_id, info.existed) == (made.actor_id, False)
        link.post(WatchActor(made.actor_id, 1))
        (changed,) = await head.ordered(ActorChanged)
        assert (changed.change.state, changed.change.cause) == (
            "DEAD",
            "It was killed by shoal.kill().",
        )
        assert head.orders == []
        assert await link.call(FindActor("ns", "n")) is None

    over(place, first)
    over(place, second)


def test_whoever_expects_an_actor_of_a_process_that_has_ended_hears_so(place: Place) -> None:
    """It had made a handle, and was killed before its message about the actor left."""

    async def scenario(head: Head, link: LocalLink) -> None:
        link.post(ClientGone(7, "local/w-00000007", "the worker, pid 12", "was killed by SIGKILL"))
        for number, owner in enumerate(("local/w-00000007", "10.0.0.1:7/w-00000008")):
            link.post(WatchActor(spec(number + 1).actor_id, number, owner))
        first, second = [order.change for order in await head.ordered(ActorChanged, 2)]
        assert (first.state, first.cause) == (
            "DEAD",
            "Its owner (the worker, pid 12) was killed by SIGKILL before it was created.",
        )
        assert second.cause == (
            "Its owner (a process of a node that is not there) ended before it was created."
        )

    over(place, scenario)


def test_a_life_whose_node_still_looks_for_a_process_is_left_to_it(place: Place) -> None:
    made = spec(1)

    async def first(head: Head, link: LocalLink) -> None:
        await link.call(CreateActor(made, JOB.job_id, False))

    async def second(head: Head, link: LocalLink) -> None:
        head.store.on_claims(NODE, [(made.actor_id, 0)])
        head.store.on_claims_over()
        link.post(ActorPlaced(made.actor_id, 0, "w.sock", 1))
        link.post(ActorRuns(made.actor_id, 0, b"", ""))
        link.post(WatchActor(made.actor_id, 1))
        (changed,) = await head.ordered(ActorChanged)
        assert (changed.change.state, changed.change.address) == ("ALIVE", "w.sock")
        # Neither stopped nor placed once more.
        assert head.orders == []

    over(place, first)
    over(place, second)


def test_a_specification_is_written_once(place: Place) -> None:
    made = spec(1)

    async def first(head: Head, link: LocalLink) -> None:
        commits: list[Write] = []
        commit = head.storage.commit

        def watched(writes: Sequence[Write]) -> asyncio.Future[None] | None:
            commits.extend(writes)
            return commit(writes)

        head.storage.commit = watched  # type: ignore[method-assign]  # the storage itself does the work
        await link.call(CreateActor(made, JOB.job_id, False))
        link.post(ActorPlaced(made.actor_id, 0, "w.sock", 1))
        link.post(ActorRuns(made.actor_id, 0, b"", ""))
        await link.call(GetKey("", b""))
        assert [w.table for w in commits].count(SPECS) == 1
        assert all(len(w.value or b"") < 200 for w in commits if w.table == ACTORS)
        link.post(KillActor(made.actor_id, True))

    over(place, first)

    async def tables() -> Tables:
        storage = place.open()
        try:
            return await storage.load()
        finally:
            await storage.close()

    found = asyncio.run(tables())
    assert SPECS not in found
    assert list(found[ACTORS]) == [made.actor_id]


def test_a_record_that_cannot_be_read_is_named(place: Place) -> None:
    async def spoil() -> None:
        storage = place.open()
        await storage.load()
        durable = storage.commit([Write(ACTORS, b"\x01", b"rubbish")])
        if durable is not None:
            await durable
        await storage.close()

    async def start() -> None:
        head = Head(place.open())
        try:
            await head.start()
        finally:
            await head.store.close()

    asyncio.run(spoil())
    with pytest.raises(
        StorageError, match=r"table 'actors', key 01\).*Start the version that wrote it"
    ):
        asyncio.run(start())


# --- storage that goes away --------------------------------------------------------------------------------------------


def test_nobody_hears_of_what_is_not_durable(make_redis: Callable[..., RedisServer]) -> None:
    async def scenario() -> None:
        server = make_redis()
        head = Head(storage_at(server.url))
        link = await head.start()
        await link.call(PutKey("ns", b"k", b"before", True))
        await asyncio.to_thread(server.kill)
        put = link.call(PutKey("ns", b"k", b"during", True))
        # Also a question whose answer depends on what is not written.
        got = link.call(GetKey("ns", b"k"))
        created = link.call(CreateActor(spec(1), JOB.job_id, False))
        await until(head.store.storage_state, "retrying: ")
        assert not any(answer.done() for answer in (put, got, created))
        assert head.orders == []
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            assert await put is False
            assert await got == b"during"
            assert (await created).class_name == "Counter"
        await head.ordered(PlaceActor)
        assert head.store.storage_state.text == OK
        assert head.failures == []
        await head.store.close()

    asyncio.run(scenario())


def test_a_storage_that_stays_away_ends_the_control_store_once(
    make_redis: Callable[..., RedisServer],
) -> None:
    async def scenario() -> None:
        server = make_redis()
        head = Head(storage_at(server.url, retry_s=0.2))
        link = await head.start()
        await asyncio.to_thread(server.kill)
        held = [link.call(PutKey("ns", b"%d" % n, b"v", True)) for n in range(3)]
        await asyncio.sleep(0)
        held += [link.call(PutKey("ns", b"%d" % n, b"v", True)) for n in range(3, 6)]
        await head.hear(lambda: bool(head.failures))
        held.append(link.call(GetKey("ns", b"1")))
        await asyncio.sleep(0.01)
        assert len(head.failures) == 1
        assert not any(answer.done() for answer in held)
        assert head.orders == []
        await head.store.close()

    asyncio.run(scenario())


class SlowStorage:
    """Commits are durable when the test says so."""

    def __init__(self) -> None:
        self.state = StorageState()
        self.commits: list[asyncio.Future[None]] = []

    async def load(self) -> Tables:
        return {}

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        self.commits.append(asyncio.get_running_loop().create_future())
        return self.commits[-1]

    async def close(self) -> None:
        """Nothing is held."""


def test_answers_come_in_order_and_each_after_its_own_commit() -> None:
    async def scenario() -> None:
        storage = SlowStorage()
        head = Head(storage)
        link = await head.start()
        answers = [
            link.call(PutKey("ns", b"a", b"1", True)),
            link.call(GetKey("ns", b"a")),
            link.call(PutKey("ns", b"b", b"1", True)),
        ]
        first, second = storage.commits
        assert head.store._journal.held == 3
        first.set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [answer.done() for answer in answers] == [True, True, False]
        second.set_result(None)
        assert await answers[2] is True
        assert head.store._journal.held == 0

    asyncio.run(scenario())


def test_after_a_failure_nothing_is_done_any_more() -> None:
    async def scenario() -> None:
        storage = SlowStorage()
        head = Head(storage)
        link = await head.start()
        answers = [link.call(PutKey("ns", b"%d" % n, b"v", True)) for n in range(3)]
        storage.commits[0].set_result(None)
        for commit in storage.commits[1:]:
            commit.set_exception(StorageError("away"))
        assert await answers[0] is True
        await asyncio.sleep(0.01)
        assert [str(failure) for failure in head.failures] == ["away"]
        link.post(JobStarted(JOB))
        assert len(storage.commits) == 3
        assert not answers[1].done()

    asyncio.run(scenario())
