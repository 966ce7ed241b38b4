"""Quotas of the object store: never more than there is, in order, and explained; and what goes to disk when it is full.

Random histories with spilling are in `test_quotas_random`.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.quotas import Granted, StoreQuotas, Wanted
from shoal.core.spilling import SpillOrder, SpillTerms

SECOND = 1_000_000_000
MS = 1_000_000
TERMS = SpillTerms(
    batch=30, order_ns=5 * SECOND, fallback_ns=SECOND, retry_ns=10 * SECOND, place="/spill"
)
TIMEOUT = 20 * SECOND


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
                    machine.on_return(holder, amount, now, asked=data.draw(st.booleans()))
                    held[holder] -= min(amount, held[holder])
            case 3:
                machine.on_tick(now)
            case 4:
                if holder in dead:
                    left = data.draw(st.integers(0, 50))
                    machine.on_swept(holder, left, now)
                    held[holder] = min(held[holder], left)
                else:
                    dead.add(holder)
                    waiting = [w for w in waiting if w[0] != holder]
                    machine.on_holder_gone(holder, now)
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
    assert drain(machine) == [Wanted("a", 30), Wanted("b", 30)]
    machine.on_return("a", 0, 0, asked=True)
    machine.on_return("b", 0, 0, asked=True)
    assert drain(machine) == []
    # Ten are free, but who came first comes first.
    machine.on_request("b", "process b", 4, 5, 0)
    assert drain(machine) == [Wanted("a", 35), Wanted("b", 35, itself=True)]
    machine.on_return("a", 10, 0, asked=True)
    assert drain(machine) == []
    machine.on_return("a", 25, 0)
    assert drain(machine) == [Granted("c", 3, 40), Granted("b", 4, 5)]


def test_holders_are_asked_again_while_somebody_waits_once_they_have_answered() -> None:
    machine = quotas()
    machine.on_request("a", "process a", 1, 60, 0)
    machine.on_request("b", "process b", 2, 30, 0)
    machine.on_request("a", "process a", 3, 20, 0)
    machine.on_request("c", "process c", 4, 30, 0)
    drain(machine)
    machine.on_return("a", 0, 0, asked=True)
    asked_at = machine.next_deadline()
    assert asked_at is not None
    assert 0 < asked_at < SECOND
    machine.on_tick(asked_at)
    # Ten are free, and the dead objects of the first are of use to itself. The other one has not answered yet.
    assert drain(machine) == [Wanted("a", 40, itself=True)]
    machine.on_return("a", 50, asked_at)
    assert [effect.req for effect in drain(machine) if isinstance(effect, Granted)] == [3, 4]
    assert machine.next_deadline() is None


def test_a_wait_ends_with_an_explanation() -> None:
    machine = quotas()
    machine.on_request("a", "the driver, pid 1", 1, 70, 0)
    machine.on_request("b", "the worker, pid 2", 2, 30, 0)
    machine.on_holder_gone("b", 0)
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
    machine.on_holder_gone("a", 0)
    machine.on_request("b", "process b", 2, 30, 0)
    drain(machine)
    machine.on_swept("a", 80, 0)
    assert drain(machine) == []
    machine.on_swept("a", 60, 0)
    assert drain(machine) == [Granted("b", 2, 30)]
    machine.on_swept("a", 0, 0)
    assert machine.held("a") == 0


# --- spilling ----------------------------------------------------------------------------------------------------------


def full_store(**held: int) -> StoreQuotas:
    """A store of 100 bytes, all of them held."""
    machine = StoreQuotas(100, 1, TIMEOUT, TERMS, 50 * MS)
    for req, (holder, amount) in enumerate(held.items()):
        machine.on_request(holder, f"process {holder}", req, amount, 0)
    drain(machine)
    assert machine.free == 0
    return machine


def ask_for(machine: StoreQuotas, needed: int, now: int = 0, *, answering: str) -> list[object]:
    """What is done for somebody who waits, when `answering` have said that they have nothing idle."""
    machine.on_request("w", "process w", 100, needed, now)
    effects = drain(machine)
    for holder in answering:
        machine.on_return(holder, 0, now, asked=True)
    return [e for e in effects + drain(machine) if not isinstance(e, Wanted)]


def test_those_that_hold_most_write_first_and_as_many_as_it_takes() -> None:
    machine = full_store(a=25, b=55, c=20)
    assert ask_for(machine, 40, answering="abc") == [SpillOrder("b", 30), SpillOrder("a", 25)]
    machine.on_spilled("b", 31, "", MS)
    # What is on its way is enough.
    assert drain(machine) == []
    machine.on_spilled("a", 25, "", MS)
    assert drain(machine) == [Granted("w", 100, 40)]
    assert machine.next_deadline() is None


def test_one_that_had_less_is_passed_over_and_the_next_is_told() -> None:
    machine = full_store(a=60, b=40)
    assert ask_for(machine, 20, answering="ab") == [SpillOrder("a", 30)]
    machine.on_spilled("a", 10, "", MS)
    assert drain(machine) == [SpillOrder("b", 30)]
    machine.on_spilled("b", 0, "", MS)
    assert drain(machine) == []
    # In the next round both may have something.
    machine.on_tick(100 * MS)
    assert {e.holder for e in drain(machine) if isinstance(e, Wanted)} == {"a", "b"}
    for holder in "ab":
        machine.on_return(holder, 0, 100 * MS, asked=True)
    assert drain(machine) == [SpillOrder("a", 30)]


def test_who_does_not_answer_is_not_waited_for() -> None:
    machine = full_store(a=80, b=20)
    assert ask_for(machine, 10, answering="b") == []
    machine.on_tick(49 * MS)
    assert drain(machine) == []
    machine.on_tick(50 * MS)
    assert drain(machine) == [SpillOrder("b", 20)]
    machine.on_spilled("b", 20, "", 60 * MS)
    assert drain(machine) == [Granted("w", 100, 10)]
    # The next round does not wait for it either; nor is it asked again.
    assert ask_for(machine, 30, 70 * MS, answering="w") == [SpillOrder("w", 10)]
    # It goes on, and does as the others do.
    machine.on_return("a", 0, 80 * MS, asked=True)
    assert drain(machine) == [SpillOrder("a", 30)]


def test_an_order_that_is_late_is_not_counted_on() -> None:
    machine = full_store(a=60, b=40)
    assert ask_for(machine, 10, answering="ab") == [SpillOrder("a", 30)]
    machine.on_tick(4 * SECOND)
    assert not [e for e in drain(machine) if isinstance(e, SpillOrder)]
    for holder in "ab":
        machine.on_return(holder, 0, 4 * SECOND, asked=True)
    machine.on_tick(5 * SECOND)
    assert [e for e in drain(machine) if not isinstance(e, Wanted)] == [SpillOrder("b", 30)]
    machine.on_spilled("a", 30, "", 6 * SECOND)
    assert drain(machine) == [Granted("w", 100, 10)]


def test_what_the_dead_left_is_written_too_and_comes_back_as_swept() -> None:
    machine = full_store(a=60, b=40)
    machine.on_holder_gone("a", 0)
    assert ask_for(machine, 30, answering="b") == [SpillOrder("a", 30)]
    machine.on_swept("a", 30, MS)
    machine.on_spilled("a", 30, "", MS)
    assert drain(machine) == [Granted("w", 100, 30)]
    assert machine.held("a") == 30


def test_an_order_ends_with_its_holder() -> None:
    machine = full_store(a=60, b=40)
    assert ask_for(machine, 30, answering="ab") == [SpillOrder("a", 30)]
    machine.on_holder_gone("a", MS)
    # Now it is for the node to write what it left.
    assert drain(machine) == [SpillOrder("a", 30)]


def test_where_nothing_can_be_spilled_objects_are_made_on_disk_in_order() -> None:
    machine = full_store(a=100)
    assert ask_for(machine, 30, answering="a") == [SpillOrder("a", 30)]
    machine.on_request("x", "process x", 101, 1, MS)
    machine.on_spilled("a", 0, "", MS)
    for now in range(2 * MS, SECOND, 10 * MS):
        machine.on_tick(now)
        for effect in drain(machine):
            if isinstance(effect, Wanted):
                machine.on_return(effect.holder, 0, now, asked=True)
            else:
                assert isinstance(effect, SpillOrder)
                machine.on_spilled(effect.holder, 0, "", now)
    machine.on_tick(SECOND)
    assert drain(machine) == [Granted("w", 100, 0, on_disk=True, size=30)]
    machine.on_tick(SECOND + MS)
    assert drain(machine) == [Granted("x", 101, 0, on_disk=True, size=1)]


def test_more_than_there_is_goes_to_disk_at_once_and_waits_for_nobody() -> None:
    machine = full_store(a=100)
    ask_for(machine, 30, answering="a")
    machine.on_request("x", "process x", 101, 101, 0)
    assert drain(machine) == [Granted("x", 101, 0, on_disk=True, size=101)]


def test_a_full_disk_is_left_alone_and_then_tried_again() -> None:
    machine = full_store(a=100)
    assert ask_for(machine, 30, answering="a") == [SpillOrder("a", 30)]
    machine.on_spilled("a", 10, "no space left", 0)
    machine.on_request("x", "process x", 101, 101, 0)
    orders = []
    for now in range(0, 11 * SECOND, 50 * MS):
        machine.on_tick(now)
        for effect in drain(machine):
            if isinstance(effect, Wanted):
                machine.on_return(effect.holder, 0, now, asked=True)
            else:
                orders.append((now, effect))
    # What is too large for memory has to wait for the disk as well.
    assert orders == [
        (10 * SECOND, Granted("x", 101, 0, on_disk=True, size=101)),
        (10 * SECOND, SpillOrder("a", 30)),
    ]
    machine.on_spilled("a", 30, "", 11 * SECOND)
    assert drain(machine) == [Granted("w", 100, 30)]


def test_on_a_full_disk_a_wait_ends_with_all_that_there_is_to_say() -> None:
    machine = full_store(a=100)
    ask_for(machine, 30, answering="a")
    machine.on_spilled("a", 0, "no space left", 0)
    machine.on_request("x", "process x", 101, 200, 0)
    answers: list[Granted] = []
    for now in range(0, TIMEOUT + 1, SECOND // 2):
        machine.on_tick(now)
        for effect in drain(machine):
            match effect:
                case Wanted():
                    machine.on_return(effect.holder, 0, now, asked=True)
                case SpillOrder():
                    machine.on_spilled(effect.holder, 0, "no space left at all", now)
                case Granted():
                    answers.append(effect)
                    # Whoever was told to make its object on disk may find out, too.
                    machine.on_spilled(effect.holder, 0, "no space left for it", now)
    assert [(e.req, e.granted, e.on_disk) for e in answers] == [(101, 0, True), (100, 0, False)]
    text = answers[1].explanation
    assert "process a 100" in text
    assert "Spilling to /spill has stopped: no space left at all" in text
    assert "Make room there" in text
    assert machine.next_deadline() is None


def test_a_slow_disk_is_no_error() -> None:
    machine = full_store(a=100)
    assert ask_for(machine, 100, answering="a") == [SpillOrder("a", 30)]
    machine.on_spilled("a", 30, "", 19 * SECOND)
    machine.on_tick(TIMEOUT)
    answers = [e for e in drain(machine) if isinstance(e, Granted)]
    assert answers == [Granted("w", 100, 0, on_disk=True, size=100)]


def test_new_requests_do_not_keep_orders_from_being_given() -> None:
    machine = full_store(a=100)
    orders = 0
    for number in range(100):
        machine.on_request("w", "process w", 100 + number, 1, number * MS)
        # The answer to the question that was asked for the one before comes now.
        machine.on_return("a", 0, number * MS, asked=True)
        for effect in drain(machine):
            if isinstance(effect, SpillOrder):
                orders += 1
                machine.on_spilled("a", 1, "", number * MS)
    assert orders > 0


def test_an_object_larger_than_the_store_does_not_wait_for_what_its_maker_keeps() -> None:
    """Or all others would write theirs to disk for a room that can never be."""
    machine = StoreQuotas(100, 10, TIMEOUT, TERMS)
    machine.on_request("a", "process a", 1, 10, 0)
    machine.on_request("a", "process a", 2, 95, 0, size=105)
    assert drain(machine) == [Granted("a", 1, 10), Granted("a", 2, 0, on_disk=True, size=105)]
