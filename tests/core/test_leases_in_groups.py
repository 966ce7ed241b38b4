"""Rule 6 of the lease queue: what placement groups have reserved is theirs, and theirs alone."""

from __future__ import annotations

from typing import Any

from shoal.core.bundles import ALL
from shoal.core.lease_records import AskBack, EndWorker, Pending, Revoke
from shoal.core.resources import CPU
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import InBundle
from tests.core.test_leases import CPU1, FREE, Node

GROUP = b"g" * 16
REASON = "its placement group was removed"


def in_group(amount: int = UNIT, index: int = 0, name: str = CPU, **options: Any) -> Shape:
    resources = ((name, amount),) if amount else ()
    return Shape(resources, strategy=InBundle(GROUP, index, **options))


def reserve(node: Node, *bundles: tuple[tuple[str, int], ...], attempt: int = 1) -> bool:
    return node.queue.on_prepare(GROUP, attempt, enumerate(bundles or (((CPU, UNIT),),)))


def test_what_is_reserved_serves_the_group_and_nobody_else() -> None:
    node = Node(cpus=2)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    outside, another = node.request(1), node.request(1)
    assert [grant.req for grant in node.grants()] == [outside]
    inside = node.request(2, in_group())
    assert [grant.req for grant in node.grants()] == [inside]
    assert node.queue.explain(1, another)
    assert node.queue.resources.available[CPU] == 0


def test_a_request_of_a_group_never_takes_what_is_free_of_the_node() -> None:
    node = Node(cpus=4)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    first, second = node.request(1, in_group()), node.request(1, in_group())
    grants = node.grants()
    assert [grant.req for grant in grants] == [first]
    assert "others have taken too much" in node.queue.explain(1, second)
    node.give_back(*grants)
    assert [grant.req for grant in node.grants()] == [second]


def test_a_request_waits_for_its_bundle_to_come_and_to_be_committed() -> None:
    node = Node()
    req = node.request(1, in_group())
    assert node.grants() == []
    assert "is not on this node" in node.queue.explain(1, req)
    assert reserve(node)
    assert node.grants() == []
    assert "is being reserved" in node.queue.explain(1, req)
    node.queue.on_commit(GROUP, 1)
    assert [grant.req for grant in node.grants()] == [req]


def test_what_a_bundle_is_too_small_for_is_said() -> None:
    node = Node()
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group(2 * UNIT))
    (pending,) = node.settle()
    assert isinstance(pending, Pending)
    assert "can never run there" in pending.reason


def test_any_bundle_will_do_and_captured_work_shares_the_line() -> None:
    node = Node(cpus=3)
    assert reserve(node, ((CPU, UNIT),), ((CPU, UNIT),))
    node.queue.on_commit(GROUP, 1)
    reqs = [node.request(1, in_group(index=-1, captures=captures)) for captures in (True, False)]
    assert sorted(grant.req for grant in node.grants()) == reqs


def test_gpus_of_a_bundle_are_its_own() -> None:
    node = Node()
    assert reserve(node, (("GPU", UNIT),))
    node.queue.on_commit(GROUP, 1)
    outside = node.request(1, Shape((("GPU", UNIT),)))
    inside = node.request(1, in_group(name="GPU"))
    ids = {grant.req: grant.gpu_ids for grant in node.grants()}
    assert ids[inside] == ["0"]
    assert ids[outside] == ["1"]


def test_a_group_that_is_removed_ends_its_leases_and_frees_the_node_after_them() -> None:
    node = Node(cpus=1)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group())
    (grant,) = node.grants()
    req = node.request(2, CPU1)
    node.queue.on_release(GROUP, ALL, node.now, REASON)
    assert node.settle() == [
        Revoke(1, grant.lease_id, REASON),
        EndWorker(grant.worker_id, REASON, True),
    ]
    # Its process still has the CPU.
    assert node.grants() == []
    node.gone(grant.worker_id)
    assert [served.req for served in node.grants()] == [req]


def test_leases_that_hold_nothing_or_have_lent_it_end_with_the_group_too() -> None:
    node = Node(cpus=2)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group(0))
    node.request(1, in_group())
    grants = node.grants()
    for grant in grants:
        node.queue.on_blocked(grant.worker_id)
    node.queue.on_release(GROUP, ALL, node.now, REASON)
    revoked = {effect.lease_id for effect in node.settle() if isinstance(effect, Revoke)}
    assert revoked == {grant.lease_id for grant in grants}
    for grant in grants:
        node.gone(grant.worker_id)
    node.settle()
    assert node.queue.resources.available == node.queue.resources.total


def test_a_worker_that_waits_lends_its_cpu_within_the_bundle() -> None:
    node = Node(cpus=2)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group())
    (outer,) = node.grants()
    inner = node.request(2, in_group(index=-1))
    assert node.grants() == []
    node.queue.on_blocked(outer.worker_id)
    assert [grant.req for grant in node.grants()] == [inner]
    node.queue.on_unblocked(outer.worker_id)
    node.settle()
    assert node.queue.resources.available[CPU] == UNIT


def test_old_leases_of_a_bundle_are_asked_back_for_others_of_the_bundle_only() -> None:
    node = Node(cpus=2)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group())
    node.request(1, CPU1)
    inside, _ = node.grants()
    node.request(2, in_group())
    asked = [effect for effect in node.settle(150) if isinstance(effect, AskBack)]
    assert asked == [AskBack(1, inside.lease_id)]


def test_an_actor_keeps_of_the_bundle_what_it_keeps() -> None:
    node = Node(cpus=1)
    assert reserve(node)
    node.queue.on_commit(GROUP, 1)
    node.request(1, in_group(), keeps=())
    (actor,) = node.grants()
    node.queue.on_settled(actor.lease_id)
    node.request(2, in_group())
    assert len(node.grants()) == 1
    node.queue.on_release(GROUP, ALL, node.now, REASON)
    assert sum(isinstance(effect, Revoke) for effect in node.settle()) == 2


def test_what_asks_for_nothing_runs_beside_a_full_reservation() -> None:
    node = Node(cpus=1)
    assert reserve(node)
    node.request(1, FREE)
    assert len(node.grants()) == 1
