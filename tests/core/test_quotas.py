"""Quotas of the object store: never more than there is, in order, and explained."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.quotas import Granted, StoreQuotas, Wanted

SECOND = 1_000_000_000


def quotas(capacity: int = 100, chunk: int = 10) -> StoreQuotas:
    return StoreQuotas(capacity, chunk, SECOND)


def drain(machine: StoreQuotas) -> list[object]:
    machine.check()
    effects: list[object] = list(machine.outbox)
    machine.outbox.clear()
    return effects


@given(st.data())
def test_histories_never_grant_more_than_there_is(data: st.DataObject) -> None:
    machine = quotas()
    held = dict.fromkeys("abc", 0)
    dead: set[str] = set()
    waiting: list[tuple[str, int, int]] = []
    now = req = 0
    for _ in range(data.draw(st.integers(1, 50))):
        holder = data.draw(st.sampled_from("abc"))
        now += data.draw(st.sampled_from([0, SECOND // 3]))
        match data.draw(st.integers(0, 4)):
            case 0 | 1:
                if holder not in dead:
                    req += 1
                    needed = data.draw(st.integers(1, 120))
                    waiting.append((holder, req, needed))
                    machine.on_request(holder, f"process {holder}", req, needed, now)
            case 2:
                if holder not in dead:
                    amount = data.draw(st.integers(0, 30))
                    machine.on_return(holder, amount)
                    held[holder] -= min(amount, held[holder])
            case 3:
                machine.on_tick(now)
            case 4:
                if holder in dead:
                    left = data.draw(st.integers(0, 50))
                    machine.on_swept(holder, left)
                    held[holder] = min(held[holder], left)
                else:
                    dead.add(holder)
                    waiting = [w for w in waiting if w[0] != holder]
                    machine.on_holder_gone(holder)
        for effect in drain(machine):
            if isinstance(effect, Granted):
                (asked,) = [w for w in waiting if w[1] == effect.req]
                waiting.remove(asked)
                assert effect.granted >= asked[2] or effect.explanation
                assert bool(effect.granted) != bool(effect.explanation)
                held[asked[0]] += effect.granted
        assert sum(held.values()) <= machine.capacity
        assert machine.free == machine.capacity - sum(held.values())
        for name, amount in held.items():
            assert machine.held(name) == amount
    # Time and room settle everything.
    machine.on_tick(now + 2 * SECOND)
    answered = {e.req for e in drain(machine) if isinstance(e, Granted)}
    assert answered == {w[1] for w in waiting}


def test_a_chunk_is_granted_while_there_is_room_and_less_when_not() -> None:
    machine = quotas(capacity=25)
    for req in range(3):
        machine.on_request("a", "process a", req, 1, 0)
    assert [e.granted for e in drain(machine) if isinstance(e, Granted)] == [10, 10, 5]


def test_waiting_is_in_order_and_the_holders_are_asked() -> None:
    machine = quotas()
    machine.on_request("a", "process a", 1, 60, 0)
    machine.on_request("b", "process b", 2, 30, 0)
    drain(machine)
    machine.on_request("c", "process c", 3, 40, 0)
    assert drain(machine) == [Wanted("a", 40), Wanted("b", 40)]
    # Ten are free, but who came first comes first.
    machine.on_request("b", "process b", 4, 5, 0)
    assert drain(machine) == [Wanted("a", 5), Wanted("b", 5, itself=True)]
    machine.on_return("a", 10)
    assert drain(machine) == []
    machine.on_return("a", 25)
    assert drain(machine) == [Granted("c", 3, 40), Granted("b", 4, 5)]


def test_holders_are_asked_again_while_somebody_waits() -> None:
    machine = quotas()
    machine.on_request("a", "process a", 1, 90, 0)
    machine.on_request("a", "process a", 2, 20, 0)
    machine.on_request("b", "process b", 3, 30, 0)
    drain(machine)
    asked_at = machine.next_deadline()
    assert asked_at is not None
    assert 0 < asked_at < SECOND
    machine.on_tick(asked_at)
    # Ten are free, and the dead objects of the first are of use to itself.
    assert drain(machine) == [Wanted("a", 40, itself=True)]
    machine.on_return("a", 50)
    assert [effect.req for effect in drain(machine) if isinstance(effect, Granted)] == [2, 3]
    assert machine.next_deadline() is None


def test_a_wait_ends_with_an_explanation() -> None:
    machine = quotas()
    machine.on_request("a", "the driver, pid 1", 1, 70, 0)
    machine.on_request("b", "the worker, pid 2", 2, 30, 0)
    machine.on_holder_gone("b")
    machine.on_request("a", "the driver, pid 1", 3, 50, 0)
    drain(machine)
    for now in range(0, SECOND, SECOND // 20):
        machine.on_tick(now)
    assert not [effect for effect in drain(machine) if isinstance(effect, Granted)]
    machine.on_tick(SECOND)
    (refused,) = drain(machine)
    assert isinstance(refused, Granted)
    assert refused.granted == 0
    assert "the driver, pid 1 70; the worker, pid 2 (ended) 30" in refused.explanation
    assert machine.next_deadline() is None


def test_what_can_never_be_is_refused_at_once() -> None:
    machine = quotas()
    machine.on_request("a", "process a", 1, 101, 0)
    (refused,) = drain(machine)
    assert isinstance(refused, Granted)
    assert "object_store_memory" in refused.explanation


def test_the_bytes_of_the_dead_count_until_they_are_swept() -> None:
    machine = quotas()
    machine.on_request("a", "process a", 1, 100, 0)
    machine.on_holder_gone("a")
    machine.on_request("b", "process b", 2, 30, 0)
    drain(machine)
    machine.on_swept("a", 80)
    assert drain(machine) == []
    machine.on_swept("a", 60)
    assert drain(machine) == [Granted("b", 2, 30)]
    machine.on_swept("a", 0)
    assert machine.held("a") == 0
