"""Actors through the node daemon and the control store, with fake workers."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest

from shoal.messages.node import (
    ActorChange,
    ActorCreate,
    ActorExiting,
    ActorInfo,
    ActorKill,
    ActorLookup,
    ActorNames,
    ActorSpec,
    ActorUnreferenced,
    ActorWatch,
    LeaseGranted,
    LeasePending,
    LeaseRequest,
    LeaseReturn,
    PeerGone,
    Shape,
    Watch,
)
from shoal.messages.values import Inline
from shoal.wire.addresses import LOCAL, place_of
from tests.process.fake_worker import tell
from tests.process.node_client import NodeClient
from tests.process.node_sessions import ONE_CPU, UNIT, NodeSession, node_session, wait_for

numbers = itertools.count(1)


def spec(driver: NodeClient, **fields: Any) -> ActorSpec:
    defaults: dict[str, Any] = {
        "actor_id": next(numbers).to_bytes(16, "big"),
        "class_name": "Counter",
        "code_id": b"c" * 16,
        "code": Inline(b""),
        "args": Inline(b""),
        "deps": [],
        "shape": Shape(()),
        "placement_shape": ONE_CPU,
        "owner": driver.address,
        "namespace": "default",
    }
    return ActorSpec(**(defaults | fields))


def create(driver: NodeClient, **fields: Any) -> ActorSpec:
    made = spec(driver, **fields)
    info = driver.ask(lambda req: ActorCreate(req, made), ActorInfo)
    assert info.actor_id == made.actor_id
    driver.send(ActorWatch(made.actor_id))
    return made


def until(driver: NodeClient, made: ActorSpec, state: str, incarnation: int = 0) -> ActorChange:
    return driver.expect(
        ActorChange,
        lambda c: (c.actor_id, c.state, c.incarnation) == (made.actor_id, state, incarnation),
    )


def alive(driver: NodeClient, made: ActorSpec, incarnation: int = 0) -> ActorChange:
    return until(driver, made, "ALIVE", incarnation)


def test_an_actor_is_placed_told_of_and_freed_of_its_cpu() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver)
        seen = [driver.expect(ActorChange)]
        while seen[-1].state != "ALIVE":
            seen.append(driver.expect(ActorChange))
        assert [c.state for c in seen] == ["PENDING"] * (len(seen) - 1) + ["ALIVE"]
        assert place_of(seen[-1].address) == LOCAL
        assert seen[-1].pid in [p.pid for p in session.processes()["shoal:worker"]]
        assert seen[-1].actor_id == made.actor_id
        # It holds nothing while it lives: both CPUs are free.
        session.lease(driver, Shape((("CPU", 2 * UNIT),)))


def test_an_actor_that_holds_a_cpu_holds_it() -> None:
    with node_session(num_cpus=1) as session:
        driver = session.register()
        alive(driver, create(driver, shape=ONE_CPU))
        driver.send(LeaseRequest(50, ONE_CPU))
        driver.expect_silence(LeaseGranted, 0.2)


def test_names_are_unique_and_found() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver, name="counter", detached=True)
        with pytest.raises(RuntimeError, match="ActorAlreadyExistsError: the name 'counter'"):
            driver.ask(lambda req: ActorCreate(req, spec(driver, name="counter")), ActorInfo)
        other = spec(driver, name="counter")
        info = driver.ask(lambda req: ActorCreate(req, other, get_if_exists=True), ActorInfo)
        assert info.existed
        assert info.actor_id == made.actor_id
        found = driver.ask(lambda req: ActorLookup(req, "counter", "default"), ActorInfo | None)
        assert found.actor_id == made.actor_id
        assert driver.ask(lambda req: ActorLookup(req, "x", "default"), ActorInfo | None) is None
        names = driver.ask(lambda req: ActorNames(req, "default", False), list[tuple[str, str]])
        assert names == [("default", "counter")]
        alive(driver, made)
        driver.send(ActorKill(made.actor_id, no_restart=True))
        assert until(driver, made, "DEAD").cause == "It was killed by shoal.kill()."
        create(driver, name="counter")


def test_an_actor_restarts_as_often_as_it_may() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver, max_restarts=2)
        os.kill(alive(driver, made).pid, 9)
        restarting = until(driver, made, "RESTARTING", 1)
        assert restarting.cause == "The actor's process was killed by SIGKILL."
        alive(driver, made, 1)
        driver.send(ActorKill(made.actor_id, no_restart=False))
        until(driver, made, "RESTARTING", 2)
        os.kill(alive(driver, made, 2).pid, 9)
        dead = until(driver, made, "DEAD", 2)
        assert "it had been restarted 2 times, as often as max_restarts allows" in dead.cause


def test_an_actor_whose_init_raises_is_dead_with_its_error() -> None:
    with node_session() as session:
        driver = session.register()
        dead = until(driver, create(driver, class_name="Broken", max_restarts=5), "DEAD")
        assert dead.cause == "Its __init__ raised ValueError: no."
        assert dead.error == b"pickled"
        wait_for(lambda: "shoal:worker" not in session.processes())


def test_an_actor_without_handles_ends_in_good_order() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver, max_restarts=5)
        address = alive(driver, made).address
        driver.send(Watch(address), ActorUnreferenced(made.actor_id))
        assert until(driver, made, "DEAD").cause == "Its last handle went out of scope."
        assert driver.expect(PeerGone).expected


def test_an_actor_that_exits_is_not_restarted() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver, max_restarts=5)
        address = alive(driver, made).address
        code = (
            f"from {ActorExiting.__module__} import *; "
            f"node.send(ActorExiting({made.actor_id!r}, 'it called exit_actor()')); os._exit(0)"
        )
        tell(address, code, wait=False)
        assert until(driver, made, "DEAD").cause == "It called exit_actor()."


def test_actors_end_with_their_owner_but_detached_ones_do_not() -> None:
    with node_session(num_cpus=4) as session:
        driver = session.register()
        owner = session.lease(driver)
        plain = create(driver, owner=owner.address)
        detached = create(driver, owner=owner.address, detached=True)
        alive(driver, plain)
        alive(driver, detached)
        os.kill(owner.pid, 9)
        cause = until(driver, plain, "DEAD").cause
        assert cause == f"Its owner (the worker, pid {owner.pid}) was killed by SIGKILL."
        driver.heard.clear()
        driver.expect_silence(ActorChange, 0.1)


def test_an_actor_that_waits_can_be_killed_and_is_explained() -> None:
    with node_session() as session:
        driver = session.register()
        made = create(driver, placement_shape=Shape((("GPU", UNIT),)))
        until(driver, made, "PENDING")
        pending = driver.expect(LeasePending)
        assert pending.req == 0
        assert pending.reason.startswith("the actor of class Counter waits: it needs GPU 1")
        driver.send(ActorKill(made.actor_id, no_restart=True))
        until(driver, made, "DEAD")


def test_watching_an_actor_that_never_was_says_so() -> None:
    with node_session() as session:
        driver = session.register()
        driver.send(ActorWatch(b"?" * 16))
        change = driver.expect(ActorChange)
        assert change.state == "DEAD"
        assert "not known to this session" in change.cause


def test_placing_waits_for_init_to_finish() -> None:
    with node_session(num_cpus=1) as session:
        driver = session.register()
        slow = create(driver, class_name="Slow")
        placed = driver.expect(ActorChange, lambda c: bool(c.address))
        assert placed.state == "PENDING"
        driver.send(LeaseRequest(60, ONE_CPU))
        driver.expect_silence(LeaseGranted, 0.1)
        driver.send(ActorKill(slow.actor_id, no_restart=True))
        driver.send(LeaseReturn(driver.expect(LeaseGranted).lease_id))


def test_many_actors_start_quickly() -> None:
    with node_session() as session:
        driver = session.register()
        made = [spec(driver) for _ in range(40)]
        driver.send(*(m for s in made for m in (ActorCreate(0, s), ActorWatch(s.actor_id))))
        pids = {alive(driver, s).pid for s in made}
        assert len(pids) == 40
        session_of_actor_processes(session, pids)


def session_of_actor_processes(session: NodeSession, pids: set[int]) -> None:
    assert pids <= {p.pid for p in session.processes()["shoal:worker"]}
