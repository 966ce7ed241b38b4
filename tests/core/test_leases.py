"""The lease queue, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.core.lease_records import (
    AskBack,
    EndWorker,
    ForkWorker,
    Grant,
    Pending,
    Refuse,
    RetireWorker,
)
from shoal.core.leases import LeaseQueue
from shoal.core.pool import WorkerKey, WorkerState
from shoal.core.resources import CPU
from shoal.errors import InternalError
from shoal.messages.node import UNIT, Shape
from tests.core.test_leases_random import MS, new_queue

JOB = b"job"
CPU1 = Shape(((CPU, UNIT),))
CPU2 = Shape(((CPU, 2 * UNIT),))
HALF = Shape(((CPU, UNIT // 2),))
FREE = Shape(())


class Node:
    """A queue whose workers start at once, unless `hold` says that they are still starting."""

    def __init__(self, cpus: int = 2) -> None:
        self.queue: LeaseQueue = new_queue(cpus)
        self.now = 0
        self.hold = False
        self.starting: list[bytes] = []
        # What waits for its turn, as owners were told.
        self.told: list[Pending] = []
        self._reqs = 0

    def request(self, owner: int, shape: Shape = CPU1, **options: Any) -> int:
        self._reqs += 1
        self.queue.on_request(owner, self._reqs, JOB, shape, self.now, **options)
        return self._reqs

    def settle(self, advance_ms: float = 0) -> list[Any]:
        """Let time pass and everything happen; the effects but forks and what only waits."""
        self.now += int(advance_ms * MS)
        effects: list[Any] = []
        while True:
            self.queue.advance(self.now)
            self.queue.check()
            new = self.queue.outbox[:]
            self.queue.outbox.clear()
            if not new:
                return effects
            for effect in new:
                if isinstance(effect, ForkWorker):
                    if self.hold:
                        self.starting.append(effect.worker_id)
                    else:
                        assert self.queue.on_registered(effect.worker_id, self.now)
                elif isinstance(effect, Pending) and not effect.reason:
                    self.told.append(effect)
                else:
                    effects.append(effect)

    def grants(self, advance_ms: float = 0) -> list[Grant]:
        return [e for e in self.settle(advance_ms) if isinstance(e, Grant)]

    def give_back(self, *grants: Grant) -> None:
        for grant in grants:
            self.queue.on_return(grant.owner, grant.lease_id, False, self.now)

    def gone(self, worker_id: bytes, cause: str = "was killed by SIGKILL") -> None:
        self.queue.on_worker_gone(worker_id, self.now, cause)


def test_resources_bound_the_grants_and_workers_are_used_again() -> None:
    node = Node(cpus=2)
    for _ in range(3):
        node.request(1)
    first, second = node.grants()
    assert first.worker_id != second.worker_id
    node.give_back(first)
    (third,) = node.grants()
    assert third.worker_id == first.worker_id
    assert third.lease_id > second.lease_id


def test_claimants_take_turns_however_many_requests_each_has() -> None:
    node = Node(cpus=3)
    for _ in range(10):
        node.request(1)
    for _ in range(10):
        node.request(2)
    assert [g.owner for g in node.grants()] == [1, 2, 1]


def test_the_most_recently_used_worker_comes_first() -> None:
    node = Node(cpus=2)
    node.request(1)
    node.request(1)
    first, second = node.grants()
    node.give_back(first)
    node.settle(1)
    node.give_back(second)
    node.settle(1)
    node.request(1)
    assert node.grants()[0].worker_id == second.worker_id


def test_forks_are_bounded_by_what_is_free() -> None:
    node = Node(cpus=2)
    node.hold = True
    for _ in range(10):
        node.request(1)
    node.settle()
    assert len(node.starting) == 2
    node.settle(10)
    assert len(node.starting) == 2
    assert "a worker is being started" in node.queue.explain(1, 1)


def test_forks_without_resources_are_bounded_too() -> None:
    node = Node()
    node.hold = True
    for _ in range(100):
        node.request(1, FREE)
    node.settle()
    assert len(node.starting) == 4


def test_nobody_slips_in_while_a_worker_starts() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    node.hold = True
    node.queue.on_request(2, 50, b"other job", CPU1, node.now)
    node.request(1)
    node.give_back(grant)
    # The idle worker could serve owner 1 at once, but owner 2 asked first.
    assert node.grants() == []
    assert node.queue.on_registered(node.starting[0], node.now)
    assert [g.owner for g in node.grants()] == [2]


def test_workers_are_not_shared_between_jobs_and_environments() -> None:
    node = Node(cpus=4)
    node.request(1)
    node.request(1, Shape(CPU1.resources, '{"env_vars":{"A":"1"}}'))
    node.queue.on_request(2, 50, b"other job", CPU1, 0)
    keys = {node.queue.pool.get(g.worker_id).key for g in node.grants()}  # type: ignore[union-attr]  # they live
    assert len(keys) == 3


def test_a_cancelled_request_is_not_served_and_a_late_cancel_does_nothing() -> None:
    node = Node(cpus=1)
    kept, dropped = node.request(1), node.request(1)
    node.queue.on_cancel(1, dropped)
    (grant,) = node.grants()
    assert grant.req == kept
    node.queue.on_cancel(1, kept)
    node.queue.on_cancel(1, 999)
    node.give_back(grant, grant)
    assert node.grants() == []
    assert node.queue.resources.available == node.queue.resources.total


def test_only_the_owner_returns_a_lease() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    node.queue.on_return(2, grant.lease_id, False, node.now)
    assert node.queue.lease(grant.lease_id) is not None


def test_a_resent_request_is_one_request() -> None:
    node = Node(cpus=2)
    node.queue.on_request(1, 7, JOB, CPU1, 0)
    node.queue.on_request(1, 7, JOB, CPU1, 0)
    assert len(node.grants()) == 1


def test_a_worker_that_waits_lends_only_its_cpus() -> None:
    node = Node(cpus=1)
    node.request(1, Shape((("CPU", UNIT), ("slot", UNIT))))
    (grant,) = node.grants()
    node.request(2, Shape((("slot", UNIT),)))
    node.request(2)
    node.queue.on_blocked(grant.worker_id)
    (lent,) = node.grants()
    assert lent.owner == 2
    node.queue.on_unblocked(grant.worker_id)
    assert node.queue.resources.available[CPU] == -UNIT
    node.request(3)
    assert node.grants() == []
    node.give_back(lent)
    assert node.grants() == []
    node.give_back(grant)
    assert len(node.grants()) == 2


def test_blocking_again_or_late_changes_nothing() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    node.queue.on_blocked(grant.worker_id)
    node.queue.on_blocked(grant.worker_id)
    # The return overtakes the end of the wait.
    node.give_back(grant)
    node.queue.on_unblocked(grant.worker_id)
    node.queue.on_blocked(grant.worker_id)
    node.settle()
    assert node.queue.resources.available == node.queue.resources.total


def test_an_old_lease_is_asked_back_once_for_who_has_none() -> None:
    node = Node(cpus=2)
    for _ in range(4):
        node.request(1)
    first, second = node.grants()
    node.request(2)
    assert node.settle(50) == []
    assert node.queue.next_deadline() == 100 * MS
    assert node.settle(50) == [AskBack(1, first.lease_id)]
    assert node.settle(500) == []
    node.give_back(first)
    # Owner 1 has waited longer, but has a lease.
    assert [g.owner for g in node.grants()] == [2]
    assert node.settle(500) == [], "each has one: nothing more to balance"
    assert second.lease_id


def test_leases_of_workers_that_wait_and_of_actors_are_not_asked_back() -> None:
    node = Node(cpus=2)
    node.request(1)
    node.request(1, CPU1, keeps=CPU1.resources)
    task, actor = node.grants()
    node.queue.on_settled(actor.lease_id)
    node.queue.on_blocked(task.worker_id)
    node.request(2, CPU2)
    assert node.settle(500) == []


def test_another_shape_of_the_same_owner_gets_its_share() -> None:
    node = Node(cpus=1)
    for _ in range(5):
        node.request(1)
    (grant,) = node.grants()
    half = node.request(1, HALF)
    assert AskBack(1, grant.lease_id) in node.settle(200)
    node.give_back(grant)
    assert [g.req for g in node.grants()] == [half]


def test_more_claimants_than_cpus_all_get_their_turn() -> None:
    node = Node(cpus=1)
    owners = range(1, 6)
    for owner in owners:
        node.request(owner)
    served: list[Any] = []
    held: dict[int, Grant] = {}
    for _ in range(60):
        for effect in node.settle(110):
            if isinstance(effect, Grant):
                served.append(effect.owner)
                held[effect.lease_id] = effect
            elif isinstance(effect, AskBack):
                grant = held.pop(effect.lease_id)
                node.request(int(str(grant.owner)))
                node.give_back(grant)
    assert {served.count(owner) for owner in owners} <= {5, 6, 7, 8, 9, 10, 11, 12}
    assert served[:5] == [1, 2, 3, 4, 5]


def test_a_large_request_is_not_starved_by_a_stream_of_small_ones() -> None:
    node = Node(cpus=2)
    running: list[Grant] = []
    for _ in range(2):
        node.request(1)
    running += node.grants()
    large = node.request(2, CPU2)
    rounds = 0
    while all(grant.req != large for grant in running):
        rounds += 1
        assert rounds <= 2000, "it starved"
        # One task ends every 10 ms, and the next one asks at once.
        node.request(1)
        if running:
            node.give_back(running.pop(0))
        running += node.grants(10)


def test_a_large_request_behind_one_that_never_ends_does_not_idle_the_node() -> None:
    node = Node(cpus=2)
    node.request(1)
    node.grants()
    node.request(2, CPU2)
    served = 0
    small: list[Grant] = []
    for _ in range(1000):
        node.request(3)
        node.give_back(*small)
        small = node.grants(100)
        served += len(small)
    assert served > 600, "at most about a quarter of the time may be lost"


def test_what_no_idle_node_could_give_waits_and_is_explained() -> None:
    node = Node(cpus=2)
    req = node.request(1, Shape((("CPU", 3 * UNIT), ("ring", UNIT))))
    (pending,) = node.settle()
    assert isinstance(pending, Pending)
    assert "CPU 3 where this node has 2 and ring 1 where this node has none" in pending.reason
    assert "num_cpus=3 and resources={'ring': 1}" in pending.reason
    assert node.queue.explain(1, req) == pending.reason
    assert node.settle(500) == []
    node.queue.on_cancel(1, req)
    node.queue.check()


def test_who_waits_can_be_explained() -> None:
    node = Node(cpus=2)
    node.request(1, CPU2)
    (grant,) = node.grants()
    node.request(2)
    late = node.request(3)
    node.settle()
    text = node.queue.explain(3, late)
    assert "it asks for CPU 1; CPU 1 is not free (0 of 2 is); 1 leases are out" in text
    assert "1 older requests wait" in text
    assert node.queue.explain(1, grant.req) == ""


def test_the_load_says_how_long_a_newcomer_waits() -> None:
    node = Node(2)
    assert node.queue.load() == (0, 0, 0)
    for owner in (1, 2, 3):
        node.request(owner)
    node.request(4, Shape(((CPU, 100 * UNIT),)))
    first, second = node.grants()
    waiting, leases, _ = node.queue.load()
    # What no node could give is not in anybody's way.
    assert (waiting, leases) == (1, 2)
    node.now += 800 * MS
    node.give_back(first, second)
    _, _, mean_ns = node.queue.load()
    # A moving average: two leases of 800 ms count for a part.
    assert 0 < mean_ns < 800 * MS


def test_the_end_of_an_owner_ends_its_requests_and_workers() -> None:
    node = Node(cpus=2)
    for _ in range(3):
        node.request(1)
    node.request(2)
    first, other = node.grants()
    node.queue.on_owner_gone(1, node.now, "its owner exited")
    assert node.settle() == [RetireWorker(first.worker_id, "its owner exited", spent=True)]
    # The task may still run: its CPU is free only when the process is gone.
    node.request(2)
    assert node.grants() == []
    node.gone(first.worker_id)
    assert [g.owner for g in node.grants()] == [2]
    assert other.owner == 2


def test_a_worker_that_dies_takes_its_lease_along() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    node.gone(grant.worker_id)
    node.give_back(grant)
    node.gone(grant.worker_id)
    node.request(1)
    (again,) = node.grants()
    assert again.worker_id != grant.worker_id


def test_gpu_workers_and_discarded_ones_retire() -> None:
    node = Node(cpus=2)
    node.request(1, Shape((("CPU", UNIT), ("GPU", UNIT))))
    node.request(1)
    gpu, plain = node.grants()
    assert gpu.gpu_ids == ["0"]
    node.give_back(gpu)
    node.queue.on_return(1, plain.lease_id, True, node.now)
    asked = node.settle()
    assert [e.worker_id for e in asked] == [gpu.worker_id, plain.worker_id]
    assert all(isinstance(e, RetireWorker) and e.spent for e in asked)
    assert node.queue.resources.available["GPU"] == UNIT, "one of two, until the process is gone"
    node.gone(gpu.worker_id, "exited with code 0")
    assert node.queue.resources.available["GPU"] == 2 * UNIT


def test_a_spent_worker_that_stays_holds_no_resources_and_is_not_leased_again() -> None:
    node = Node(cpus=1)
    node.request(1, Shape((("GPU", 2 * UNIT),)))
    (grant,) = node.grants()
    node.give_back(grant)
    node.settle()
    node.queue.on_stays(grant.worker_id, node.now)
    assert node.queue.resources.available["GPU"] == 2 * UNIT
    node.request(1, Shape((("GPU", 2 * UNIT),)))
    (other,) = node.grants(10_000)
    assert other.worker_id != grant.worker_id
    node.gone(grant.worker_id, "exited with code 0")
    node.settle()


def test_an_actor_begins_in_a_worker_that_was_never_leased() -> None:
    node = Node(cpus=2)
    node.request(1)
    (task,) = node.grants()
    node.give_back(task)
    node.settle()
    node.request(0, keeps=())
    (actor,) = node.grants()
    assert actor.worker_id != task.worker_id
    node.request(1)
    assert [g.worker_id for g in node.grants()] == [task.worker_id]


def test_tasks_leave_fresh_workers_to_actors() -> None:
    node = Node(cpus=2)
    node.request(1)
    (task,) = node.grants()
    node.give_back(task)
    node.settle(1)
    node.queue.prestart(WorkerKey(JOB, ""), 2, node.now)
    node.settle(1)
    node.request(1)
    assert [g.worker_id for g in node.grants()] == [task.worker_id]
    # Unless there is no other.
    node.request(1)
    (second,) = node.grants()
    assert second.worker_id != task.worker_id


def test_an_actor_is_placed_with_more_than_it_keeps() -> None:
    node = Node(cpus=1)
    node.request(0, CPU1, keeps=())
    (actor,) = node.grants()
    node.request(1)
    assert node.grants() == []
    node.queue.on_settled(actor.lease_id)
    node.queue.on_settled(actor.lease_id)
    assert len(node.grants()) == 1


def test_many_actors_do_not_make_the_directory_poorer() -> None:
    node = Node(cpus=2)
    for _ in range(20):
        node.request(0, CPU1, keeps=())
        (actor,) = node.grants()
        node.queue.on_settled(actor.lease_id)
        node.settle()
        if len(node.queue.pool) > 8:
            break
    for _ in range(3):
        node.request(1)
    node.request(0, CPU1, keeps=())
    assert sorted(str(g.owner) for g in node.grants()) == ["0", "1"]


def test_surplus_idle_workers_retire_after_a_while() -> None:
    node = Node(cpus=2)
    for _ in range(4):
        node.request(1, FREE)
    grants = node.grants()
    node.give_back(*grants)
    assert node.settle() == []
    assert node.queue.next_deadline() == 1000 * MS
    asked = node.settle(1000)
    assert [e.worker_id for e in asked] == [g.worker_id for g in grants[:2]]
    assert all(isinstance(e, RetireWorker) and not e.spent for e in asked)
    assert node.settle(5000) == []
    # One ends. The other says that it is counted on: it is one of the idle again, and the longest idle is asked.
    node.gone(asked[0].worker_id, "exited with code 0")
    node.queue.on_stays(asked[1].worker_id, node.now)
    (next_asked,) = node.settle()
    assert next_asked.worker_id == grants[2].worker_id
    node.request(1)
    assert [g.worker_id for g in node.grants()] == [asked[1].worker_id]


def test_prestarted_workers_are_bounded_by_what_may_idle() -> None:
    node = Node(cpus=2)
    node.hold = True
    node.queue.prestart(WorkerKey(JOB, ""), 100, 0)
    node.settle()
    assert len(node.starting) == 2
    node.queue.prestart(WorkerKey(JOB, ""), 100, 0)
    assert node.settle() == []
    assert len(node.starting) == 2


def test_three_failed_starts_in_a_row_refuse_who_waits() -> None:
    node = Node(cpus=1)
    node.hold = True
    req = node.request(1)
    for _ in range(3):
        node.settle()
        node.gone(node.starting.pop(), "exited with code 1")
    (refused,) = node.settle()
    assert isinstance(refused, Refuse)
    assert (refused.req, refused.kind) == (req, "start")
    assert "3 workers in a row" in refused.reason
    # One that asks later is tried again.
    node.request(1)
    node.settle()
    assert len(node.starting) == 1


def test_who_starts_too_slowly_is_killed() -> None:
    node = Node(cpus=1)
    node.hold = True
    node.request(1)
    node.settle()
    (ended,) = node.settle(60_000)
    assert ended.kill
    assert "did not register in time" in ended.reason
    assert not node.queue.on_registered(ended.worker_id, node.now), "too late"


def test_a_failed_environment_refuses_who_needs_it() -> None:
    node = Node(cpus=2)
    env = Shape(CPU1.resources, '{"pip":["x"]}')
    node.hold = True
    req = node.request(1, env)
    node.request(1)
    node.settle()
    node.queue.on_env_failed(WorkerKey(JOB, env.env), "pip is not known")
    assert node.settle() == [Refuse(1, req, "env", "pip is not known")]


def test_the_end_of_a_job_spares_actors_that_outlive_it() -> None:
    node = Node(cpus=4)
    node.request(0, CPU1, keeps=(), outlives_job=True)
    node.request(1)
    actor, task = node.grants()
    waiting = node.request(1, CPU2)
    node.request(1, CPU2)
    node.queue.on_job_gone(JOB, node.now, "its driver exited", kill=False)
    assert [e.worker_id for e in node.settle() if isinstance(e, EndWorker)] == [task.worker_id]
    assert node.queue.explain(1, waiting) == ""
    worker = node.queue.pool.get(actor.worker_id)
    assert worker is not None
    assert worker.state is WorkerState.LEASED


def test_the_number_of_processes_is_bounded() -> None:
    node = Node(cpus=2)
    for _ in range(30):
        node.request(1, FREE)
    assert len(node.grants()) == 12
    assert "as many as its limits allow" in node.queue.explain(1, 30)


def test_a_node_with_all_its_processes_lets_one_of_another_job_retire() -> None:
    node = Node()
    for _ in range(12):
        node.request(1, FREE)
    grants = node.grants()
    node.give_back(*grants[:2])
    node.queue.on_request(2, 1000, b"other", FREE, node.now)
    (asked,) = node.settle()
    assert asked == RetireWorker(
        grants[0].worker_id, "the node has as many processes as it may", spent=False
    )
    # It is counted on, and the next one too: nobody is asked again and again.
    node.queue.on_stays(grants[0].worker_id, node.now)
    (asked,) = node.settle()
    assert asked.worker_id == grants[1].worker_id
    node.queue.on_stays(grants[1].worker_id, node.now)
    assert node.settle() == []
    assert node.queue.next_deadline() == node.now + 1000 * MS
    (asked,) = node.settle(1000)
    node.gone(asked.worker_id, "exited with code 0")
    assert [g.owner for g in node.grants()] == [2]


def test_an_illegal_move_tells_the_workers_story() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    worker = node.queue.pool.get(grant.worker_id)
    assert worker is not None
    node.queue.pool.end(worker, 5)
    with pytest.raises(InternalError, match=r"from ending to idle .*starting at 0, idle at 0"):
        node.queue.pool.make_idle(worker, 6)
