"""Who ends when memory is short: by the rules, whatever a node looks like."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.memory_policy import Decision, Kill, Kind, Occupant, Retire, Wait, decide

MIB = 1 << 20
LIMIT = 1024 * MIB


def worker(
    name: str,
    kind: Kind | None = Kind.TASK,
    owner: str = "driver",
    since: int = 0,
    mib: int = 100,
) -> Occupant:
    return Occupant(name.encode(), kind, owner, since, mib * MIB)


def victim(*occupants: Occupant) -> str:
    decision = decide(occupants, LIMIT)
    assert isinstance(decision, Kill), decision
    return decision.worker_id.decode()


def test_idle_workers_are_asked_first() -> None:
    busy, idle, small = worker("busy"), worker("idle", None), worker("small", None, mib=1)
    assert decide([busy, idle, small], LIMIT) == Retire([b"idle"])
    # One whose memory is not worth it stays, and keeps its warm caches.
    assert victim(busy, small) == "busy"


def test_the_newest_of_one_owner() -> None:
    assert victim(worker("b", since=3), worker("a", since=9), worker("c", since=5)) == "a"


def test_the_owner_that_has_most_gives_one_up() -> None:
    of_one = [worker("x", owner="one", since=100)]
    of_two = [worker("y", owner="two", since=1), worker("z", owner="two", since=2)]
    assert victim(*of_one, *of_two) == "z"
    # As many: the newest of all.
    assert victim(*of_one, *of_two[:1]) == "x"


def test_what_may_be_tried_again_goes_before_what_may_not() -> None:
    kinds = {kind: worker(kind.name, kind, since=kind) for kind in Kind}
    for kind in Kind:
        assert victim(*kinds.values()) == kind.name
        del kinds[kind]


def test_a_small_worker_is_left_alone() -> None:
    assert victim(worker("old", since=1), worker("new", since=2, mib=1)) == "old"
    assert victim(worker("last", Kind.LAST_TASK), worker("new", mib=1)) == "last"


def test_many_small_workers_are_not_small() -> None:
    crowd = [worker(f"{number:02}", since=number, mib=3) for number in range(30)]
    assert victim(*crowd) == "29"
    few = decide(crowd[:10], LIMIT)
    assert isinstance(few, Wait)
    assert "others" in few.why


def test_who_was_alone_is_told() -> None:
    alone = decide([worker("a"), worker("b", mib=1)], LIMIT)
    assert isinstance(alone, Kill)
    assert alone.alone
    beside = decide([worker("a"), worker("b", Kind.LAST_ACTOR)], LIMIT)
    assert isinstance(beside, Kill)
    assert not beside.alone


def test_nobody_there() -> None:
    assert isinstance(decide([], LIMIT), Wait)


def occupants() -> st.SearchStrategy[list[Occupant]]:
    one = st.tuples(
        st.sampled_from([None, *Kind]),
        st.sampled_from(["driver", "worker", "other node"]),
        st.integers(0, 5),
        st.sampled_from([0, 1, 3, 5, 100, 900]),
    )
    return st.lists(one, max_size=12).map(
        lambda rows: [
            worker(f"w{number}", kind, owner, since, mib)
            for number, (kind, owner, since, mib) in enumerate(rows)
        ]
    )


@given(occupants())
def test_every_decision_keeps_the_rules(everybody: list[Occupant]) -> None:
    worth = LIMIT // 256
    decision = decide(everybody, LIMIT)
    by_id = {one.worker_id: one for one in everybody}
    match decision:
        case Retire(worker_ids):
            assert worker_ids
            assert {by_id[i].kind for i in worker_ids} == {None}
            assert all(by_id[i].private_bytes >= worth for i in worker_ids)
        case Wait():
            busy = [one for one in everybody if one.kind is not None]
            assert sum(one.private_bytes for one in busy) < LIMIT // 16
        case Kill(worker_id, why, alone):
            chosen = by_id[worker_id]
            assert chosen.kind is not None
            assert why.endswith(".")
            large = [o for o in everybody if o.kind is not None and o.private_bytes >= worth]
            rivals = large or [o for o in everybody if o.kind is not None]
            assert chosen in rivals
            assert alone == (len(rivals) == 1)
            assert all(chosen.kind <= other.kind for other in rivals if other.kind is not None)
            same = [other for other in rivals if other.kind is chosen.kind]
            counts = Counter(other.owner for other in same)
            assert counts[chosen.owner] == max(counts.values())
            siblings = [other for other in same if other.owner == chosen.owner]
            assert chosen.since == max(other.since for other in siblings)


@given(occupants(), st.randoms(use_true_random=False))
def test_the_order_in_which_workers_are_listed_is_nothing(
    everybody: list[Occupant], rng: random.Random
) -> None:
    shuffled = everybody[:]
    rng.shuffle(shuffled)
    assert decide(shuffled, LIMIT) == decide(everybody, LIMIT)


@given(occupants())
def test_after_finitely_many_ends_nothing_is_left_to_end(everybody: list[Occupant]) -> None:
    # A node where memory stays short, whatever is ended, because others use it.
    left = everybody
    for _ in range(len(everybody) + 1):
        decision: Decision = decide(left, LIMIT)
        gone: set[bytes]
        match decision:
            case Wait():
                return
            case Retire(worker_ids):
                gone = set(worker_ids)
            case Kill(worker_id):
                gone = {worker_id}
        left = [one for one in left if one.worker_id not in gone]
    raise AssertionError(left)
