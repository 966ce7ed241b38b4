"""Which jobs the control store knows: until they end, or for as long as a detached actor of them lives."""

from __future__ import annotations

import asyncio

import pytest

from shoal.control.link import ControlError
from shoal.control.local_link import LocalLink
from shoal.control.storage.memory import MemoryPlace, MemoryStorage
from shoal.messages.control import (
    ActorChanged,
    ActorPlaced,
    ClientGone,
    CreateActor,
    CreateGroup,
    FindActor,
    GetKey,
    GroupChanged,
    JobEnded,
    JobStarted,
    KillActor,
    ListGroups,
    ListJobs,
    PlaceActor,
    StopActor,
    WatchActor,
    WatchGroup,
)
from shoal.messages.node import UNIT, Job
from shoal.messages.placement import Bundle, GroupSpec
from tests.contract.members import Node, serving
from tests.contract.places import Place
from tests.contract.test_control_store import JOB, NODE, Head, over, spec


def test_jobs_come_back_until_they_end(place: Place) -> None:
    async def first(head: Head, link: LocalLink) -> None:
        link.post(JobStarted(JOB))
        await link.call(GetKey("", b""))

    async def second(head: Head, link: LocalLink) -> None:
        assert [row.job for row in await link.call(ListJobs())] == [JOB]
        link.post(JobEnded(JOB.job_id, "its driver has shut down"))

    async def third(head: Head, link: LocalLink) -> None:
        assert await link.call(ListJobs()) == []

    for scenario in (first, second, third):
        over(place, scenario)


def test_a_job_that_is_over_is_kept_for_as_long_as_a_detached_actor_of_it_lives(
    place: Place,
) -> None:
    made = spec(1)

    async def first(head: Head, link: LocalLink) -> None:
        link.post(JobStarted(JOB))
        await link.call(CreateActor(made, JOB.job_id, False))
        link.post(JobEnded(JOB.job_id, "its driver has shut down"))
        # What others say meanwhile is no reason to look through the actors.
        assert not head.store._jobs.may_forget

    async def second(head: Head, link: LocalLink) -> None:
        head.store.on_claims(NODE, [(made.actor_id, 0)])
        head.store.on_claims_over()
        assert head.store._jobs.get(JOB.job_id) == JOB
        link.post(KillActor(made.actor_id, True))
        await head.ordered(StopActor)
        assert head.store._jobs.get(JOB.job_id) is None

    over(place, first)
    over(place, second)


def test_a_job_is_known_by_an_actor_that_is_quicker_than_its_drivers_node(place: Place) -> None:
    """Its node cannot reach the control store at the moment; one where a task of it runs can."""
    made = spec(1, max_restarts=-1)

    async def first(head: Head, link: LocalLink) -> None:
        await link.call(CreateActor(made, JOB.job_id, False, JOB))
        (order,) = await head.ordered(PlaceActor)
        assert (order.job, order.job_over) == (JOB, False)
        # It is nobody's so far.
        assert await link.call(ListJobs()) == []
        link.post(ActorPlaced(made.actor_id, 0, "w.sock", 1))

    async def second(head: Head, link: LocalLink) -> None:
        head.store.on_claims_over()
        (order,) = await head.ordered(PlaceActor)
        assert (order.incarnation, order.job) == (1, JOB)
        link.post(JobStarted(JOB))
        assert [(row.job, row.node_id) for row in await link.call(ListJobs())] == [(JOB, NODE)]
        link.post(KillActor(made.actor_id, True))
        await head.ordered(StopActor)
        assert head.store._jobs.get(JOB.job_id) == JOB

    async def third(head: Head, link: LocalLink) -> None:
        assert [row.job for row in await link.call(ListJobs())] == [JOB]
        # Told once more, with an actor that there is already: nothing new.
        other = Job(b"o" * 16, "ns", [], "/")
        await link.call(CreateActor(spec(2, name="n"), JOB.job_id, False))
        await link.call(CreateActor(spec(3, name="n"), other.job_id, True, other))
        assert head.store._jobs.get(other.job_id) is None

    for scenario in (first, second, third):
        over(place, scenario)


def test_a_detached_actor_of_a_job_that_is_over_starts_again_at_a_node_that_never_heard_of_the_job() -> (
    None
):
    """Its driver has gone, then the control store, and then its node; the node that is left has come after all that."""
    place = MemoryPlace()
    made = spec(1, owner="10.0.0.1:7000/d-00000001", max_restarts=-1)

    async def scenario() -> None:
        async with serving(MemoryStorage(place)) as control:
            first = Node(1, control.port, obey=True)
            await first.link.join()
            first.link.post(JobStarted(JOB))
            await first.link.call(CreateActor(made, JOB.job_id, False))
            first.link.post(ClientGone(1, made.owner, "the driver, pid 12", "exited"))
            first.link.post(JobEnded(JOB.job_id, "its driver (pid 12) exited", kill=True))
            assert [row.ended for row in await first.link.call(ListJobs())] == [
                "its driver (pid 12) exited"
            ]
            assert first.lives == [(made.actor_id, 0)]
            port = control.port
        async with serving(MemoryStorage(place), port=port):
            assert await first.link.call(FindActor("", "none")) is None
            newcomer = Node(2, port, obey=True)
            await newcomer.link.join()
            newcomer.link.post(WatchActor(made.actor_id, 1))
            await first.link.leave("was stopped")
            (order,) = await newcomer.ordered(PlaceActor)
            assert (order.spec, order.incarnation) == (made, 1)
            assert (order.job, order.job_over) == (JOB, True)
            await newcomer.hear(
                lambda: [o.change.state for o in newcomer.heard(ActorChanged)][-1:] == ["ALIVE"]
            )
            newcomer.link.close()

    asyncio.run(scenario())


def test_groups_of_a_job_that_is_over_go_with_the_last_that_lives_of_it(place: Place) -> None:
    """A detached actor has made them since: the end of the job was told before."""
    actor = spec(1)

    def group(number: int) -> GroupSpec:
        bundles = [Bundle((("CPU", UNIT),))]
        return GroupSpec(number.to_bytes(16, "big"), bundles, job_id=JOB.job_id)

    async def scenario(head: Head, link: LocalLink) -> None:
        link.post(JobStarted(JOB))
        await link.call(CreateActor(actor, JOB.job_id, False))
        link.post(JobEnded(JOB.job_id, "its driver has shut down"))
        await link.call(CreateGroup(group(1)))
        (info,) = await link.call(ListGroups())
        assert info.record.state == "PENDING"
        link.post(KillActor(actor.actor_id, True))
        link.post(WatchGroup(group(1).group_id))
        await head.hear(lambda: "REMOVED" in [o.change.state for o in watched(head)])
        assert (
            watched(head)[-1].change.cause
            == "was removed with its job: nothing of it lives any more"
        )
        # One that comes now would never be removed.
        with pytest.raises(ControlError, match="is over"):
            await link.call(CreateGroup(group(2)))

    def watched(head: Head) -> list[GroupChanged]:
        return [order for order in head.orders if isinstance(order, GroupChanged)]

    over(place, scenario)
