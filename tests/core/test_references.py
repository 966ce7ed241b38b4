"""The object table, rule by rule. Several processes with a network between them are in `test_references_random`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from shoal.core.reference_effects import (
    AskToRecount,
    EndActor,
    Forsake,
    FreeValue,
    GiveUp,
    RegisterBorrower,
)
from shoal.core.references import ObjectTable
from shoal.errors import InternalError
from shoal.messages.values import Failed, Inline, Location, Refs, Stored


def stored(name: str = "segment", refs: Iterable[Refs] = ()) -> Stored:
    return Stored(Location(name, 0, 1), "a", list(refs))


def effects(table: ObjectTable) -> list[Any]:
    table.check()
    found = table.outbox[:]
    table.outbox.clear()
    return found


def test_an_object_goes_with_its_last_handle() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    entry.local += 1
    value = stored()
    assert table.complete(entry, value, [], registered=True) is None
    table.drop_locals([entry])
    assert effects(table) == []
    table.drop_locals([entry])
    assert effects(table) == [FreeValue(value)]
    assert table.entries == {}
    assert entry.value is None


def test_handles_that_die_together_are_counted_one_by_one() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x", local=3)
    table.drop_locals([entry, entry, entry])
    assert table.entries == {}


def test_a_task_that_uses_an_object_keeps_it() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    table.hold(entry)
    table.drop_locals([entry])
    assert b"x" in table.entries
    table.unhold(entry)
    assert table.entries == {}


def test_waiters_are_returned_once_with_the_value() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    entry.waiters = ["first", "second"]
    assert table.complete(entry, b"value", [], registered=True) == ["first", "second"]
    assert entry.value == b"value"
    assert entry.waiters is None


def test_a_value_that_nobody_waits_for_any_more_is_freed_at_once() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    table.drop_locals([entry])
    value = stored(refs=[Refs("b", [b"theirs"])])
    assert table.complete(entry, value, value.refs, registered=True) is None
    assert effects(table) == [FreeValue(value), GiveUp("b", b"theirs", 1)]
    assert table.entries == {}


@pytest.mark.parametrize(
    "value", [stored(refs=[Refs("b", [b"theirs"])]), Inline(b"", [], [Refs("b", [b"theirs"])])]
)
def test_what_comes_twice_gives_up_what_was_registered_for_it(value: Stored | Inline) -> None:
    table = ObjectTable("a")
    table.refuse(value, "executor")
    freed = [FreeValue(value)] if isinstance(value, Stored) else []
    assert effects(table) == [*freed, GiveUp("b", b"theirs", 1, (("executor", 1),))]
    assert table.entries == {}


def test_what_comes_twice_leaves_the_first_alone() -> None:
    table = ObjectTable("a")
    item = table.own(b"item")
    table.complete(item, stored(refs=[Refs("b", [b"x"])]), [Refs("b", [b"x"])], registered=True)
    table.refuse(stored("again", [Refs("b", [b"x"])]), "executor")
    assert effects(table) == [FreeValue(stored("again", [Refs("b", [b"x"])]))]
    table.drop_locals([item])
    assert effects(table)[-1] == GiveUp("b", b"x", 2, (("executor", 1),))


def test_failures_and_plain_values_are_refused_too() -> None:
    table = ObjectTable("a")
    table.refuse(Failed(b""), "executor")
    table.refuse(b"", "executor")
    assert effects(table) == []


def test_a_chain_of_a_hundred_thousand_objects_is_freed_without_recursion() -> None:
    table = ObjectTable("a")
    previous = table.own(b"first")
    for number in range(100_000):
        entry = table.own(number.to_bytes(4, "big"))
        table.contain(entry, [previous])
        table.drop_locals([previous])
        previous = entry
    assert len(table.entries) == 100_001
    table.drop_locals([previous])
    assert table.entries == {}


def test_what_two_objects_contain_lives_as_long_as_either() -> None:
    table = ObjectTable("a")
    inner, one, two = table.own(b"inner"), table.own(b"one"), table.own(b"two")
    table.contain(one, [inner, inner])
    table.contain(two, [inner])
    table.drop_locals([inner, one])
    assert set(table.entries) == {b"inner", b"two"}
    table.drop_locals([two])
    assert table.entries == {}


def test_the_last_handle_of_an_actor_ends_it() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    entry.actor_id = b"actor"
    table.register(b"x", "b")
    table.drop_locals([entry])
    assert effects(table) == []
    table.give_up(b"x", "b", 1)
    assert effects(table) == [EndActor(b"actor")]


def test_registrations_commute_and_a_count_below_zero_keeps_the_object() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    table.give_up(b"x", "b", 2)
    table.drop_locals([entry])
    assert table.register(b"x", "b")
    assert b"x" in table.entries
    assert table.register(b"x", "b")
    table.consider(entry)
    assert table.entries == {}
    assert table.by_borrower == {}


def test_what_is_gone_cannot_be_registered_and_giving_it_up_changes_nothing() -> None:
    table = ObjectTable("a")
    assert not table.register(b"x", "b")
    table.give_up(b"x", "b", 1)
    theirs = table.borrow((b"y", "c"))
    assert not table.register(b"y", "b")
    assert theirs.borrowers is None


def test_the_registrations_of_a_dead_process_go_with_it() -> None:
    table = ObjectTable("a")
    entries = [table.own(name) for name in (b"x", b"y")]
    for name in (b"x", b"y", b"x"):
        table.register(name, "b")
    table.register(b"y", "c")
    table.drop_locals(entries)
    table.forget_borrower("b")
    assert set(table.entries) == {b"y"}
    table.forget_borrower("b")
    table.forget_borrower("c")
    assert table.entries == {}


def test_a_borrowed_entry_is_given_up_as_often_as_it_was_registered() -> None:
    table = ObjectTable("a")
    results = [table.own(b"one"), table.own(b"two")]
    for result in results:
        table.complete(result, stored(), [Refs("b", [b"x"])], registered=True)
    assert table.unregistered == {}
    table.drop_locals(results)
    assert effects(table)[-1] == GiveUp("b", b"x", 2)


def test_a_borrowed_argument_that_is_dropped_in_time_is_never_registered() -> None:
    table = ObjectTable("a")
    entry = table.borrow((b"x", "b"))
    entry.local += 1
    table.drop_locals([entry])
    assert table.register_before([], "b") is None
    assert effects(table) == []


def test_a_borrowed_argument_that_is_kept_is_registered_before_the_reply() -> None:
    table = ObjectTable("a")
    entry = table.borrow((b"x", "b"))
    entry.local += 1
    countdown = table.register_before([], "b")
    assert countdown is not None
    (asked,) = effects(table)
    assert asked == RegisterBorrower("b", [b"x"], "a", asked.token)
    assert table.acknowledge(asked.token) == [countdown]
    assert table.acknowledge(asked.token) == []
    assert table.register_before([], "b") is None


def test_a_reply_waits_for_what_another_reply_has_asked_for() -> None:
    table = ObjectTable("actor")
    entry = table.borrow((b"x", "owner"))
    entry.local += 1
    first = table.register_before([], "caller")
    second = table.register_before([], "another caller, whose argument it was")
    (asked,) = effects(table)
    assert table.acknowledge(asked.token) == [first, second]
    assert table.register_before([], "caller") is None


def test_the_reply_waits_until_every_owner_has_registered_the_caller() -> None:
    table = ObjectTable("executor")
    ours, theirs, callers = (
        table.own(b"ours"),
        table.borrow((b"theirs", "owner")),
        table.borrow((b"callers", "caller")),
    )
    theirs.local = callers.local = 1
    countdown = table.register_before([ours, theirs, callers], "caller")
    table.drop_locals([ours, theirs, callers])
    asked = effects(table)
    # Each once for the executor, which still has a handle, and once for the caller; the caller's own object too.
    assert sorted((effect.owner, effect.borrower) for effect in asked) == [
        ("caller", "caller"),
        ("caller", "executor"),
        ("owner", "caller"),
        ("owner", "executor"),
    ]
    assert ours.borrowers == {"caller": 1}
    done = [table.acknowledge(effect.token) for effect in asked]
    assert done == [[], [], [], [countdown]]
    assert effects(table) == []
    assert countdown is not None
    table.release_held(countdown)
    assert effects(table) == [GiveUp("owner", b"theirs", 1), GiveUp("caller", b"callers", 1)]


def test_a_fetched_value_is_held_until_the_owners_inside_it_know_of_us() -> None:
    table = ObjectTable("a")
    outer = table.borrow((b"outer", "b"))
    outer.local += 1
    table.complete(outer, stored(), [Refs("c", [b"inner"])], registered=False)
    table.drop_locals([outer])
    (asked,) = effects(table)
    assert asked == RegisterBorrower("c", [b"inner"], "a", asked.token)
    assert table.acknowledge(asked.token) == []
    assert effects(table) == [GiveUp("c", b"inner", 1)]
    assert table.entries == {}


def test_objects_made_here_leave_borrowed_references_as_they_are() -> None:
    # An actor's arguments, a `put`: only the caller's hold covers what is inside, until the reply asks for more.
    table = ObjectTable("a")
    inner, outer = table.borrow((b"x", "b")), table.own(b"outer")
    table.contain(outer, [inner])
    assert inner.registrations == 0
    assert list(table.unregistered) == [inner]


def test_an_object_that_is_lent_home_is_counted_for_the_journey_only() -> None:
    table = ObjectTable("a")
    entry, result = table.own(b"x"), table.own(b"result")
    # The executor asked for it: for us, by name, as it does for any caller.
    assert table.register(b"x", "a")
    table.drop_locals([entry])
    assert b"x" in table.entries
    table.complete(result, stored(), [Refs("a", [b"x"])], registered=True)
    assert not entry.borrowers
    table.drop_locals([result])
    assert table.entries == {}


def test_when_an_owner_dies_nobody_waits_for_its_word() -> None:
    table = ObjectTable("a")
    lent = table.borrow((b"x", "dead"))
    lent.local = 1
    countdown = table.register_before([lent], "caller")
    outer = table.borrow((b"outer", "alive"))
    outer.local = 1
    table.complete(outer, stored(), [Refs("dead", [b"y"])], registered=False)
    assert outer.holds == 1
    entries, ended = table.owner_died("dead")
    assert {entry.object_id for entry in entries} == {b"x", b"y"}
    # The executor's registration for itself and the one for the caller.
    assert countdown is not None
    assert countdown.missing == 0
    assert ended == [countdown]
    assert outer.holds == 0


def test_our_own_object_that_was_sent_without_a_hold_is_known_to_be_gone() -> None:
    table = ObjectTable("a")
    entry = table.borrow((b"x", "a"))
    entry.local += 1
    assert entry.owner == "a"
    assert table.unregistered == {}
    # Who kept it without being registered gives up what was never counted.
    table.give_up(b"x", "b", 1)
    assert not table.register(b"x", "b")
    assert entry.borrowers is None
    table.drop_locals([entry])
    assert table.entries == {}
    assert effects(table) == []


@pytest.mark.parametrize("broken", ["dropped", "negative", "borrowers", "unheld", "misplaced"])
def test_check_sees_a_table_that_contradicts_itself(broken: str) -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    match broken:
        case "dropped":
            entry.dropped = True
        case "negative":
            entry.holds = -1
        case "borrowers":
            entry.owner, entry.borrowers = "b", {"c": 1}
        case "unheld":
            entry.contains = [table.own(b"inner")]
        case "misplaced":
            table.entries[b"y"] = entry
    with pytest.raises(InternalError):
        table.check()


def test_who_waits_for_what_was_freed_is_told() -> None:
    table = ObjectTable("a")
    entry = table.own(b"x")
    entry.waiters = ["a borrower whose caller died, and who has asked for the value"]
    table.drop_locals([entry])
    (forsaken,) = effects(table)
    assert forsaken == Forsake(
        ["a borrower whose caller died, and who has asked for the value"], entry
    )
    assert table.complete(entry, b"value", [], registered=True) is None


# --- very many at a time -----------------------------------------------------------------------------------------------


def test_registrations_go_to_each_owner_in_batches() -> None:
    table = ObjectTable("a", batch=2)
    outer = table.borrow((b"outer", "b"))
    outer.local = 1
    refs = [Refs("c", [b"1", b"2", b"3"]), Refs("d", [b"4"])]
    table.complete(outer, stored(refs=refs), refs, registered=False)
    asked = effects(table)
    assert [(effect.owner, effect.object_ids) for effect in asked] == [
        ("c", [b"1", b"2"]),
        ("c", [b"3"]),
        ("d", [b"4"]),
    ]
    assert outer.holds == 3
    for effect in asked:
        table.acknowledge(effect.token)
    assert outer.holds == 0
    assert list(table.unregistered) == [outer]


def test_a_reply_asks_in_batches_and_waits_for_all_of_them() -> None:
    table = ObjectTable("executor", batch=2)
    kept = [table.borrow((bytes([number]), "caller")) for number in range(5)]
    for entry in kept:
        entry.local = 1
    countdown = table.register_before(kept[:3], "caller")
    asked = effects(table)
    assert [len(effect.object_ids) for effect in asked] == [2, 2, 1, 2, 1]
    # Another reply asks for nothing that is asked for, and waits for it.
    other = table.register_before([], "caller")
    assert effects(table) == []
    assert countdown is not None
    assert other is not None
    assert (countdown.missing, other.missing) == (5, 3)
    ended = [table.acknowledge(effect.token) for effect in asked]
    assert ended == [[], [], [other], [], [countdown]]


def test_what_a_freed_object_contained_is_released_in_batches() -> None:
    table = ObjectTable("a", batch=2)
    outer = table.own(b"outer")
    inners = [table.own(bytes([number])) for number in range(5)]
    table.contain(outer, list(inners))
    table.drop_locals([*inners, outer])
    left = [len(table.entries)]
    while table.unfinished:
        table.release_some()
        effects(table)
        left.append(len(table.entries))
    assert left == [5, 3, 1, 0]


def test_borrowers_of_one_object_are_not_those_of_another() -> None:
    table = ObjectTable("a")
    entries = [table.own(bytes([number])) for number in range(3)]
    for entry in entries:
        table.register(entry.object_id, "b")
    assert entries[0].borrowers is entries[1].borrowers, (
        "a dictionary for each would be most of its memory"
    )
    table.register(entries[0].object_id, "b")
    table.register(entries[1].object_id, "c")
    assert [entry.borrowers for entry in entries] == [{"b": 2}, {"b": 1, "c": 1}, {"b": 1}]
    table.give_up(entries[1].object_id, "c", 1)
    table.give_up(entries[0].object_id, "b", 2)
    assert [entry.borrowers for entry in entries] == [None, {"b": 1}, {"b": 1}]
    for number in range(10):
        table.register(entries[1].object_id, f"c{number}")
        table.register(entries[2].object_id, f"c{number}")
    table.give_up(entries[1].object_id, "c3", 1)
    assert entries[2].borrowers == {"b": 1} | {f"c{number}": 1 for number in range(10)}
    for number in range(10):
        table.forget_borrower(f"c{number}")
    assert [entry.borrowers for entry in entries] == [None, {"b": 1}, {"b": 1}]
    table.forget_borrower("b")
    assert [entry.borrowers for entry in entries] == [None, None, None]


def test_a_table_that_was_large_is_small_again() -> None:
    table = ObjectTable("a")
    entries = [table.own(number.to_bytes(4, "big")) for number in range(100_000)]
    table.shrink()
    large = sys.getsizeof(table.entries)
    table.drop_locals(entries[10:])
    table.shrink()
    assert sys.getsizeof(table.entries) < large / 1_000
    assert list(table.entries.values()) == entries[:10]


# --- what somebody has vouched for ------------------------------------------------------------------------------------


def test_what_a_dead_process_vouched_for_and_never_said_is_counted_and_dropped() -> None:
    owner, caller = ObjectTable("owner"), ObjectTable("caller")
    entry = owner.own(b"x")
    for _ in range(3):
        assert owner.register(b"x", "caller", "executor")
    # Two replies have come, and both results live; the third was lost with the executor.
    for _ in range(2):
        result = caller.own(os.urandom(16))
        caller.complete(result, stored(), [Refs("owner", [b"x"])], True, "executor")
    owner.drop_locals([entry])
    owner.voucher_died("executor")
    (asked,) = effects(owner)
    assert asked == AskToRecount("caller", "executor", [b"x"])
    assert caller.recount("executor", asked.object_ids) == [(b"x", 2)]
    owner.on_counted("executor", "caller", asked.object_ids, [(b"x", 2)])
    assert entry.borrowers == {"caller": 2}
    assert not owner.vouchers
    # Naming them again changes nothing: they are counted.
    owner.give_up(b"x", "caller", 2, [("executor", 2)])
    assert owner.entries == {}


def test_what_is_given_up_before_the_count_is_not_counted_again() -> None:
    owner, caller = ObjectTable("owner"), ObjectTable("caller")
    entry = owner.own(b"x")
    owner.register(b"x", "caller", "executor")
    owner.register(b"x", "caller", "executor")
    result = caller.own(b"result")
    caller.complete(result, stored(), [Refs("owner", [b"x"])], True, "executor")
    caller.drop_locals([result])
    given_up = effects(caller)[-1]
    assert given_up == GiveUp("owner", b"x", 1, (("executor", 1),))
    owner.voucher_died("executor")
    owner.give_up(b"x", "caller", 1, given_up.vouchers)
    owner.on_counted("executor", "caller", [b"x"], caller.recount("executor", [b"x"]))
    assert not entry.borrowers
    assert not owner.vouchers
    assert not caller.vouchers


def test_an_owner_counts_for_itself_what_did_not_come_home() -> None:
    owner = ObjectTable("owner")
    entry = owner.own(b"x")
    owner.register(b"x", "owner", "executor")
    owner.register(b"x", "owner", "executor")
    result = owner.own(b"result")
    owner.complete(result, stored(), [Refs("owner", [b"x"])], True, "executor")
    owner.drop_locals([entry, result])
    assert b"x" in owner.entries
    owner.voucher_died("executor")
    assert owner.entries == {}
    assert not owner.vouchers


def test_nobody_vouches_for_what_an_executor_owns() -> None:
    caller = ObjectTable("caller")
    result = caller.own(b"result")
    caller.complete(result, stored(), [Refs("executor", [b"x"])], True, "executor")
    assert not caller.vouchers
    caller.drop_locals([result])
    assert effects(caller)[-1] == GiveUp("executor", b"x", 1)


def test_with_a_borrower_goes_what_others_vouched_for() -> None:
    owner = ObjectTable("owner")
    entry = owner.own(b"x")
    owner.register(b"x", "caller", "executor")
    owner.register(b"x", "other", "executor")
    owner.forget_borrower("caller")
    owner.voucher_died("executor")
    assert effects(owner) == [AskToRecount("other", "executor", [b"x"])]
    owner.forget_borrower("other")
    owner.drop_locals([entry])
    assert owner.entries == {}
    assert not owner.vouchers


# --- crashes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["caller", "owner"], ids=["another's", "its own"])
def test_what_was_registered_for_a_reply_that_never_came_goes_with_the_caller(caller: str) -> None:
    table = ObjectTable("owner")
    entry = table.own(b"x")
    # By an executor, which dies: whom it registered does not hear of it.
    assert table.register(b"x", caller)
    table.forget_borrower("executor")
    table.drop_locals([entry])
    assert b"x" in table.entries
    table.forget_borrower(caller)
    assert table.entries == {}


def test_what_was_freed_with_its_caller_is_registered_for_nobody() -> None:
    owner, executor = ObjectTable("owner"), ObjectTable("executor")
    given = owner.own(b"x")
    assert owner.register(b"x", "caller")
    owner.drop_locals([given])
    kept = executor.borrow((b"x", "owner"))
    kept.local += 1
    # The caller dies during the call: nobody covers the executor now.
    owner.forget_borrower("caller")
    assert owner.entries == {}
    countdown = executor.register_before([], "caller")
    (asked,) = effects(executor)
    assert isinstance(asked, RegisterBorrower)
    assert not owner.register(asked.object_ids[0], asked.borrower)
    assert executor.acknowledge(asked.token) == [countdown]
    # Giving up what was never counted is nothing to the owner.
    executor.drop_locals([kept])
    assert effects(executor) == [GiveUp("owner", b"x", 1)]
    owner.give_up(b"x", "executor", 1)
    assert effects(owner) == []
    assert owner.by_borrower == {}
