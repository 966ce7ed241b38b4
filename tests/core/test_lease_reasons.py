"""Why a request waits in the queue of a node: one test for each kind of reason."""

from __future__ import annotations

from shoal.core.lease_reasons import why_request
from shoal.core.resources import CPU
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import InBundle
from shoal.messages.state import Reason
from tests.core.test_leases import CPU1, CPU2, FREE, Node

HERE = b"n" * 16
EPOCH_NS = 1_000_000_000_000


def why(node: Node, owner: int, req: int) -> Reason:
    reason = why_request(
        node.queue,
        owner,
        req,
        HERE,
        EPOCH_NS,
        lambda worker_id: int.from_bytes(worker_id[:4], "big"),
    )
    assert reason is not None
    assert (reason.node_id, reason.follow) == (HERE, [])
    return reason


def test_amounts_in_use_come_with_who_has_them_since_when_and_who_is_ahead() -> None:
    node = Node(cpus=3)
    node.request(1, CPU1, name="small")
    node.request(1, CPU2, name="large")
    small, large = node.grants()
    node.settle(5)
    asked_at = node.now
    first = node.request(2, CPU2, name="first")
    second = node.request(3, CPU1, name="second")
    node.settle(7)
    reason = why(node, 2, first)
    assert reason.subject == "the request for a worker for first"
    assert (reason.kind, reason.ahead) == ("resource", 0)
    assert reason.text.startswith(
        "it asks for CPU 2; CPU 2 is not free (0 of 3 is); 2 leases are out"
    )
    assert reason.since_ns == EPOCH_NS + asked_at
    assert [(holder.name, holder.resources) for holder in reason.holders] == [
        ("large", ((CPU, 2 * UNIT),)),
        ("small", ((CPU, UNIT),)),
    ]
    pids = [int.from_bytes(grant.worker_id[:4], "big") for grant in (large, small)]
    assert [holder.pid for holder in reason.holders] == pids
    assert all(EPOCH_NS <= holder.since_ns < reason.since_ns for holder in reason.holders)
    assert why(node, 3, second).ahead == 1


def test_those_who_have_lent_what_is_missing_are_not_blamed() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    node.queue.on_blocked(grant.worker_id)
    node.request(2)
    (other,) = node.grants()
    last = node.request(3)
    node.settle()
    holders = why(node, 3, last).holders
    assert [holder.pid for holder in holders] == [int.from_bytes(other.worker_id[:4], "big")]


def test_only_the_largest_of_many_holders_are_named() -> None:
    node = Node(cpus=8)
    for _ in range(8):
        node.request(1)
    node.grants()
    last = node.request(2)
    node.settle()
    assert len(why(node, 2, last).holders) == 5


def test_a_worker_that_starts_is_named_and_so_is_its_environment() -> None:
    node = Node(cpus=2)
    node.hold = True
    plain = node.request(1, FREE)
    env = node.request(2, Shape((), '{"env_vars":{"A":"b"}}'))
    node.settle()
    assert why(node, 1, plain).kind == "worker start"
    assert why(node, 2, env).kind == "environment"
    assert why(node, 1, plain).holders == []


def test_what_no_node_has_is_nowhere_and_nobody_is_ahead() -> None:
    node = Node(cpus=2)
    node.request(1, CPU2)
    node.grants()
    huge = node.request(1, Shape(((CPU, 3 * UNIT),)))
    node.settle()
    reason = why(node, 1, huge)
    assert (reason.kind, reason.ahead, reason.holders) == ("nowhere", -1, [])


def test_a_bundle_that_is_not_here_is_waited_for() -> None:
    node = Node(cpus=2)
    req = node.request(1, Shape(((CPU, UNIT),), strategy=InBundle(b"g" * 16, 0)))
    node.settle()
    assert why(node, 1, req).kind == "placement group"


def test_what_does_not_wait_has_no_reason() -> None:
    node = Node()
    req = node.request(1)
    node.grants()
    assert why_request(node.queue, 1, req, HERE, 0, lambda _: 0) is None
    assert node.queue.explain(1, req) == ""
