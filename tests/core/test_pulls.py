"""Pulls of objects: one at a time for each, in order, from whoever has it, and explained when nobody has."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.pull_records import (
    MOVES,
    UNDER_WAY,
    Answer,
    Discard,
    Effect,
    Fetch,
    Key,
    Stage,
    State,
    Stop,
)
from shoal.core.pulls import Pulls
from shoal.errors import InternalError
from shoal.messages.transfer import Why
from shoal.messages.values import Location

SECOND = 1_000_000_000
HERE = Location("me-0", 0, 10, 1)


def key(number: int = 0, size: int = 10, place: str = "origin") -> Key:
    return Key(place, Location(f"maker-{number}", 0, size, number + 1))


def make(limit_bytes: int = 100, limit: int = 4, tries: int = 3, patience_ns: int = 0) -> Pulls:
    return Pulls(limit_bytes, limit, tries, feeds=lambda _key: False, patience_ns=patience_ns)


def drain(machine: Pulls) -> list[Effect]:
    machine.check()
    effects = machine.outbox[:]
    machine.outbox.clear()
    return effects


def keys_of(effects: list[Effect]) -> list[Key]:
    """What is to be fetched."""
    return [effect.key for effect in effects if isinstance(effect, Fetch)]


def wish(machine: Pulls, of: Key, client: int = 1, req: int = 1, why: Why = Why.GET) -> None:
    machine.on_wish(client, req, of, why, 0)


def test_one_pull_answers_everybody_who_wished() -> None:
    machine = make()
    wish(machine, key(), client=1)
    wish(machine, key(), client=2)
    wish(machine, key(), client=1)
    assert drain(machine) == [Fetch(key(), 1, "origin", False, ())]
    machine.on_accepted(key(), 1)
    assert machine.stage(key()) is Stage.RECEIVING
    machine.on_arrived(key(), 1, HERE, 0)
    assert drain(machine) == [Answer(1, 1, HERE), Answer(2, 1, HERE)]
    wish(machine, key(), client=3, req=7)
    assert drain(machine) == [Answer(3, 7, HERE)]


def test_a_get_goes_before_arguments_and_otherwise_who_came_first() -> None:
    machine = make(limit=1)
    for number, why in enumerate([Why.ARGUMENTS, Why.ARGUMENTS, Why.WAIT, Why.GET, Why.GET]):
        wish(machine, key(number), req=number, why=why)
    order = []
    for _ in range(5):
        (fetch,) = [effect for effect in drain(machine) if isinstance(effect, Fetch)]
        order.append(fetch.key)
        machine.on_arrived(fetch.key, fetch.attempt, HERE, 0)
    assert order == [key(0), key(3), key(4), key(2), key(1)]


def test_an_argument_that_a_get_wants_too_moves_up() -> None:
    machine = make(limit=1)
    for number in range(3):
        wish(machine, key(number), req=number, why=Why.ARGUMENTS)
    wish(machine, key(2), req=9)
    drain(machine)
    machine.on_arrived(key(0), 1, HERE, 0)
    assert Fetch(key(2), 2, "origin", False, ()) in drain(machine)


def test_the_bytes_under_way_are_bounded_and_a_large_one_is_not_starved() -> None:
    machine = make(limit_bytes=100)
    for number, size in enumerate([60, 90, 10]):
        wish(machine, key(number, size), req=number)
    assert keys_of(drain(machine)) == [key(0, 60)]
    machine.on_arrived(key(0, 60), 1, HERE, 0)
    assert keys_of(drain(machine)) == [key(1, 90), key(2, 10)]


def test_one_that_is_larger_than_the_limit_goes_alone() -> None:
    machine = make(limit_bytes=100)
    wish(machine, key(0, 1000), req=1)
    wish(machine, key(1, 1), req=2)
    assert keys_of(drain(machine)) == [key(0, 1000)]


def test_a_source_that_breaks_off_is_followed_by_one_that_it_had_named() -> None:
    machine = make()
    wish(machine, key())
    machine.on_elsewhere(key(), 1, ["b", "c"], 0)
    machine.on_broken(key(), 2, "closed the connection", 0, progress=True)
    fetches = [effect for effect in drain(machine) if isinstance(effect, Fetch)]
    assert [fetch.source for fetch in fetches] == ["origin", "b", "c"]
    # Everybody has been asked: after a pause again, the origin first, and b last, since it failed.
    machine.on_missing(key(), 3, "it is not here", 0)
    assert drain(machine) == []
    deadline = machine.next_deadline()
    assert deadline is not None
    machine.on_tick(deadline)
    assert drain(machine) == [Fetch(key(), 4, "origin", False, ("c",))]
    assert machine.next_deadline() is None


def test_an_origin_that_is_busy_is_asked_for_ever() -> None:
    machine = make()
    wish(machine, key())
    now = 0
    for attempt in range(1, 100):
        assert drain(machine) == [Fetch(key(), attempt, "origin", False, ())]
        machine.on_elsewhere(key(), attempt, [], now)
        deadline = machine.next_deadline()
        assert deadline is not None
        assert now < deadline <= now + SECOND
        now = deadline
        machine.on_tick(now)


def test_a_source_that_fails_again_and_again_is_given_up_with_the_reason() -> None:
    machine = make(tries=3)
    wish(machine, key())
    for attempt in (1, 2, 3):
        assert drain(machine) == [Fetch(key(), attempt, "origin", False, ())]
        machine.on_broken(key(), attempt, "refused the connection", 0)
        machine.on_tick(10 * SECOND)
    assert drain(machine) == [
        Answer(
            1,
            1,
            None,
            "ObjectLostError: no node has it any more: origin refused the connection",
        ),
        Discard(key()),
    ]


def while_nobody_can_be_reached(machine: Pulls, end: int) -> tuple[list[str], list[Answer]]:
    """Who is asked until `end`, and what is answered."""
    asked: list[str] = []
    answers: list[Answer] = []
    now = 0
    while True:
        for effect in drain(machine):
            if isinstance(effect, Fetch):
                asked.append(effect.source)
                machine.on_broken(effect.key, effect.attempt, "cannot be reached", now)
            elif isinstance(effect, Answer):
                answers.append(effect)
        if machine.outbox:
            continue
        now = machine.next_deadline() or end
        if now >= end:
            return asked, answers
        machine.on_tick(now)


def test_an_origin_that_cannot_be_reached_may_have_died_and_is_asked_until_that_is_known() -> None:
    machine = make(tries=3, patience_ns=10 * SECOND)
    wish(machine, key())
    asked, answers = while_nobody_can_be_reached(machine, 9 * SECOND)
    assert len(asked) > 3
    assert not answers
    machine.on_place_gone("origin", "was killed", 9 * SECOND)
    (answer,) = (effect for effect in drain(machine) if isinstance(effect, Answer))
    assert answer.cause == "was killed"


def test_an_origin_that_cannot_be_reached_and_has_not_died_is_given_up_in_the_end() -> None:
    machine = make(tries=3, patience_ns=10 * SECOND)
    wish(machine, key())
    _, (answer,) = while_nobody_can_be_reached(machine, 20 * SECOND)
    assert answer.error == "ObjectLostError: no node has it any more: origin cannot be reached"


def test_of_several_others_those_that_fail_are_given_up_soon_but_not_the_last() -> None:
    machine = make(tries=3, patience_ns=10 * SECOND)
    wish(machine, key())
    drain(machine)
    machine.on_accepted(key(), 1, ["one", "two"])
    machine.on_missing(key(), 1, "it is not here", 0)
    asked, answers = while_nobody_can_be_reached(machine, 9 * SECOND)
    assert min(map(asked.count, ("one", "two"))) == 3
    assert max(map(asked.count, ("one", "two"))) > 3
    assert not answers


def test_bytes_that_came_excuse_the_failures_before() -> None:
    machine = make(tries=2)
    wish(machine, key())
    for attempt in range(1, 50):
        machine.on_broken(key(), attempt, "broke off", 0, progress=True)
        machine.on_tick(10 * SECOND)
    assert not [effect for effect in drain(machine) if isinstance(effect, Answer)]


def test_two_that_have_a_part_do_not_ask_each_other_for_ever() -> None:
    machine = make()
    wish(machine, key())
    machine.on_elsewhere(key(), 1, ["b"], 0)
    machine.on_elsewhere(key(), 2, [], 0)
    machine.on_place_gone("origin", "was killed", 0)
    now = 0
    for _ in range(100):
        answers = []
        for effect in drain(machine):
            if isinstance(effect, Fetch) and effect.attempt > 2:
                machine.on_elsewhere(effect.key, effect.attempt, [], now)
            answers += [effect] if isinstance(effect, Answer) else []
        if answers:
            break
        deadline = machine.next_deadline()
        if deadline is not None:
            now = deadline
            machine.on_tick(now)
    (answer,) = answers
    assert answer.cause == "was killed"


def test_the_end_of_the_node_is_the_reason_also_for_those_who_come_later() -> None:
    machine = make()
    wish(machine, key())
    drain(machine)
    machine.on_place_gone("origin", "was killed", 0)
    assert drain(machine) == [Stop(key(), 1)]
    machine.on_broken(key(), 1, "broke off", 0)
    lost = "ObjectLostError: its node (origin) was killed"
    assert drain(machine) == [Answer(1, 1, None, lost, "was killed"), Discard(key())]
    wish(machine, key(), req=2)
    assert drain(machine) == [Answer(1, 2, None, lost, "was killed")]
    machine.on_place_here("origin")
    wish(machine, key(), req=3)
    assert drain(machine) == [Fetch(key(), 2, "origin", False, ())]


def test_a_copy_outlives_the_node_that_it_came_from() -> None:
    machine = make()
    wish(machine, key())
    machine.on_arrived(key(), 1, HERE, 0)
    machine.on_place_gone("origin", "was killed", 0)
    drain(machine)
    wish(machine, key(), req=2)
    assert drain(machine) == [Answer(1, 2, HERE)]


def test_a_pull_that_nobody_wants_is_stopped_and_its_block_freed_when_it_has() -> None:
    machine = make(limit=1)
    wish(machine, key())
    wish(machine, key(1), client=2)
    drain(machine)
    machine.on_client_gone(1, 0)
    assert drain(machine) == [Stop(key(), 1)]
    machine.on_broken(key(), 1, "was stopped", 0)
    assert drain(machine) == [Discard(key()), Fetch(key(1), 2, "origin", False, ())]


def test_what_is_wanted_again_while_it_is_being_stopped_goes_on_with_what_has_come() -> None:
    machine = make()
    wish(machine, key())
    machine.on_done_with(1, 1, 0)
    wish(machine, key(), req=2)
    assert [type(effect) for effect in drain(machine)] == [Fetch, Stop]
    machine.on_broken(key(), 1, "was stopped", 0)
    assert drain(machine) == [Fetch(key(), 2, "origin", False, ())]


def test_it_may_have_arrived_before_it_was_stopped() -> None:
    machine = make()
    wish(machine, key())
    machine.on_done_with(1, 1, 0)
    wish(machine, key(), req=2)
    drain(machine)
    machine.on_arrived(key(), 1, HERE, 0)
    assert drain(machine) == [Answer(1, 2, HERE)]


def test_copies_are_dropped_when_the_object_is_dead_and_nobody_has_them_pinned() -> None:
    machine = make()
    for number in (0, 1):
        wish(machine, key(number), req=number)
        machine.on_arrived(key(number), number + 1, HERE, 0)
    machine.on_done_with(1, 0, 0)
    drain(machine)
    machine.on_dead("origin", [key(0).location, key(1).location, key(2).location])
    assert drain(machine) == [Discard(key(0))]
    machine.on_done_with(1, 1, 0)
    assert drain(machine) == [Discard(key(1))]


def test_room_is_made_of_what_was_unused_for_longest() -> None:
    machine = make()
    for number in range(4):
        wish(machine, key(number), req=number)
        machine.on_arrived(key(number), number + 1, HERE, 0)
    for number in (2, 0, 1):
        machine.on_done_with(1, number, 0)
    wish(machine, key(2), req=9)
    machine.on_done_with(1, 9, 0)
    drain(machine)
    assert machine.on_room_wanted(11) == 20
    assert drain(machine) == [Discard(key(0)), Discard(key(1))]
    assert machine.on_room_wanted(1000) == 10
    assert drain(machine) == [Discard(key(2))]


def test_copies_on_disk_are_no_room() -> None:
    machine = Pulls(100, 4, 3, feeds=lambda _key: False, on_disk=lambda of: of == key(0))
    for number in range(2):
        wish(machine, key(number), req=number)
        machine.on_arrived(key(number), number + 1, HERE, 0)
        machine.on_done_with(1, number, 0)
    drain(machine)
    assert machine.on_room_wanted(1000) == 10
    assert drain(machine) == [Discard(key(1))]


def test_copies_on_disk_are_looked_at_once() -> None:
    asked: list[Key] = []

    def on_disk(of: Key) -> bool:
        asked.append(of)
        return True

    machine = Pulls(100, 4, 3, feeds=lambda _key: False, on_disk=on_disk)
    for number in range(50):
        wish(machine, key(number), req=number)
        machine.on_arrived(key(number), number + 1, HERE, 0)
        machine.on_done_with(1, number, 0)
    for _ in range(50):
        assert machine.on_room_wanted(10) == 0
    machine.check()
    assert len(asked) == 50
    # It is as good as any, and goes with its object.
    wish(machine, key(7), req=99)
    machine.on_done_with(1, 99, 0)
    machine.on_dead("origin", [key(number).location for number in range(50)])
    machine.check()
    assert machine.copies() == []


def test_room_on_disk_is_made_of_copies_there_that_were_unused_for_longest() -> None:
    there = {key(number) for number in (0, 1, 3, 4, 5)}
    fed, viewed = key(3), key(4)
    machine = Pulls(
        100,
        8,
        3,
        feeds=lambda of: of == fed,
        on_disk=lambda of: of in there,
        viewed=lambda of: of == viewed,
    )
    for number in range(6):
        wish(machine, key(number), req=number)
        machine.on_arrived(key(number), number + 1, HERE, 0)
    # The last one is pinned.
    for number in (4, 3, 2, 1, 0):
        machine.on_done_with(1, number, 0)
    drain(machine)
    assert machine.on_disk_wanted(1) == 10
    assert drain(machine) == [Discard(key(1))]
    assert machine.on_disk_wanted(1000) == 10
    assert drain(machine) == [Discard(key(0))]
    assert machine.on_disk_wanted(1) == 0
    # It is not looked at any more.
    viewed = key(9)
    assert machine.on_disk_wanted(1) == 10
    machine.check()


def test_what_is_larger_than_the_store_holds_up_nobody() -> None:
    """It is brought to disk, and may take an hour."""
    machine = Pulls(100, 4, 3, feeds=lambda _key: False, capacity=200)
    huge = key(0, size=1_000)
    wish(machine, huge, req=0)
    for number in range(1, 12):
        wish(machine, key(number), req=number)
    assert keys_of(drain(machine)) == [huge, key(1), key(2), key(3)]
    machine.on_arrived(key(1), 2, HERE, 0)
    assert keys_of(drain(machine)) == [key(4)]


def test_what_somebody_gets_from_here_is_no_room() -> None:
    machine = Pulls(100, 4, 3, feeds=lambda of: of == key(0))
    wish(machine, key())
    machine.on_arrived(key(), 1, HERE, 0)
    machine.on_done_with(1, 1, 0)
    drain(machine)
    assert machine.on_room_wanted(1) == 0


def test_a_full_store_fails_the_wishes_with_its_explanation() -> None:
    machine = make()
    wish(machine, key())
    machine.on_no_room(key(), 1, "the worker, pid 7, has it all", 0)
    assert drain(machine)[1:] == [
        Answer(1, 1, None, "ObjectStoreFullError: the worker, pid 7, has it all"),
        Discard(key()),
    ]


def test_an_illegal_move_tells_the_story() -> None:
    machine = make()
    wish(machine, key())
    copy = machine._copies[key()]
    with pytest.raises(InternalError, match="fetching, attempt 1, 1 wishes"):
        machine._move(copy, State.QUEUED)
    assert set(MOVES) == set(State)
    assert set(State) > UNDER_WAY


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([15, 40, 1000]))
def test_histories_answer_each_wish_once(rng: random.Random, limit: int, limit_bytes: int) -> None:
    """Any order of wishes, ends, deaths, outcomes, also stale and repeated ones: against what a reader of the rules expects."""
    machine = Pulls(limit_bytes, limit, 2, feeds=lambda _key: False)
    keys = [key(number, size, place) for number, size in enumerate((5, 10, 30)) for place in "ab"]
    open_: set[tuple[int, int]] = set()
    pinned: dict[tuple[int, int], Key] = {}
    wanted: dict[tuple[int, int], Key] = {}
    running: dict[Key, int] = {}
    stopped: set[Key] = set()
    blocks: set[Key] = set()
    past: list[tuple[Key, int]] = []
    now = 0

    def take() -> None:
        for effect in drain(machine):
            match effect:
                case Fetch(of, attempt, source):
                    assert of not in running, "two pulls of one object"
                    assert source in {"a", "b", "c", "d"}
                    running[of] = attempt
                    blocks.add(of)
                case Stop(of, attempt):
                    assert running[of] == attempt
                    stopped.add(of)
                case Discard(of):
                    assert of not in running
                    assert of not in pinned.values(), "a pinned copy was dropped"
                    blocks.discard(of)
                case Answer(client, req, location, error):
                    open_.remove((client, req))
                    assert (location is None) == bool(error)
                    if location is not None:
                        assert wanted[client, req] in blocks
                        pinned[client, req] = wanted[client, req]
        assert sum(of.location.size for of in running) <= limit_bytes or len(running) == 1

    def outcome(of: Key, attempt: int, kind: int) -> None:
        if kind == 0:
            machine.on_arrived(of, attempt, HERE, now)
        elif kind == 1:
            machine.on_broken(of, attempt, "broke off", now, progress=rng.random() < 0.5)
        elif kind == 2:
            machine.on_elsewhere(of, attempt, rng.sample("abcd", 2), now)
        elif kind == 3:
            machine.on_missing(of, attempt, "no", now)
        elif kind == 4:
            machine.on_no_room(of, attempt, "full", now)

    for step in range(rng.randint(1, 120)):
        now += rng.choice([0, 0, SECOND // 10])
        choice = rng.randrange(10)
        if choice < 3:
            client, of = rng.randrange(3), rng.choice(keys)
            open_.add((client, step))
            wanted[client, step] = of
            machine.on_wish(client, step, of, rng.choice(list(Why)), now)
        elif choice < 6 and running:
            of = rng.choice(list(running))
            attempt = running[of]
            if rng.random() < 0.3 and of not in stopped:
                machine.on_accepted(of, attempt)
            else:
                del running[of]
                stopped.discard(of)
                past.append((of, attempt))
                outcome(of, attempt, rng.randrange(5))
        elif choice == 6 and past:
            outcome(*rng.choice(past), rng.randrange(5))
        elif choice == 7:
            client = rng.randrange(3)
            gone = rng.random() < 0.2
            mine = [wish for wish in {*open_, *pinned} if wish[0] == client]
            for wish_ in sorted(mine) if gone else sorted(mine)[:1]:
                open_.discard(wish_)
                pinned.pop(wish_, None)
                if not gone:
                    machine.on_done_with(*wish_, now)
            if gone:
                machine.on_client_gone(client, now)
        elif choice == 8:
            place = rng.choice("abcd")
            if rng.random() < 0.5:
                machine.on_place_gone(place, "died", now)
            else:
                machine.on_place_here(place)
        else:
            machine.on_dead("a", [rng.choice(keys).location])
            machine.on_room_wanted(rng.randrange(40))
            machine.on_tick(now)
        take()
    # Everything heals: each wish is answered, and everything that was pinned can be dropped.
    for _ in range(1000):
        if not open_:
            break
        for of, attempt in list(running.items()):
            del running[of]
            stopped.discard(of)
            outcome(of, attempt, 0)
            take()
        deadline = machine.next_deadline()
        if deadline is not None:
            now = max(now, deadline)
            machine.on_tick(now)
        take()
    assert not open_
    for of, attempt in list(running.items()):
        del running[of]
        outcome(of, attempt, 1)
    for client in range(3):
        machine.on_client_gone(client, now)
    pinned.clear()
    machine.on_room_wanted(1 << 60)
    take()
    assert not blocks, "memory was forgotten"
    assert not machine._copies
    assert not machine._of_client
