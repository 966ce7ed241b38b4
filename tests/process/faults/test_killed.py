"""The fault matrix, first part: an owner, a borrower or an executor is killed while nothing happens to the objects, while one is on its way
to another node, and while one is written to disk. `docs/faults.md` has the table.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError
from shoal.testing.cluster import Cluster
from tests.api.gates import wait_until
from tests.process.faults.moments import (
    BIG,
    array,
    arriving,
    being_spilled,
    copies_at,
    files_on_disk,
    is_known,
    is_right,
    kill,
    shared_memory,
    spill_folder,
    stopped,
    stopped_in_the_middle,
    workers_of,
)
from tests.process.faults.roles import (
    LESS,
    at,
    check,
    creator_of,
    get,
    holders,
    is_owned,
    make,
    pid_of,
    pid_of_a_worker,
    the_only_worker,
    wait_until_known,
)

SEEDS = [1, 2, 3]


# --- the owner ---------------------------------------------------------------------------------------------------------


def test_owner_idle(two: Cluster) -> None:
    owner, borrower = holders(1, 0)
    seen, known, unknown = get(owner.put.remote(SEEDS, LESS))
    get(borrower.keep.remote([unknown]))
    view = get(seen)
    wait_until_known([known])
    kill(pid_of(owner))
    with pytest.raises(OwnerDiedError, match=f"{unknown.hex()}.* was killed by SIGKILL"):
        get(unknown)
    with pytest.raises(OwnerDiedError, match=f"{unknown.hex()}.* was killed by SIGKILL"):
        get(borrower.check.remote([3], LESS))
    # Who knew its value, or where it is, has it still.
    assert is_right(view, 1, LESS)
    assert is_right(get(seen), 1, LESS)
    assert is_right(get(known), 2, LESS)


def test_owner_mid_transfer(two: Cluster, beside: ThreadPoolExecutor) -> None:
    (owner,) = holders(1)
    pid = pid_of(owner)
    moving, unknown = get(owner.put.remote([31, 32]))
    here, there = two.nodes
    value = beside.submit(get, moving)
    with stopped_in_the_middle(
        there.pid, lambda: arriving(shared_memory(here.session_dir), 31), "a copy"
    ):
        kill(pid)
        assert not value.done()
    assert is_right(value.result(), 31)
    with pytest.raises(OwnerDiedError, match=r"was killed by SIGKILL"):
        get(unknown)


def test_owner_mid_spill(two: Cluster) -> None:
    owner, reader, other = holders(1, 1, 1)
    pid = pid_of(owner)
    refs = get(owner.put.remote(SEEDS, BIG))
    get(reader.keep.remote(refs))
    # Of what is looked at nothing goes; the next one is written.
    get(reader.look.remote(0))
    get(reader.know.remote(2))
    folder = spill_folder(two.nodes[1].session_dir)
    more = other.push_out.remote([4] * 3)
    address = refs[0].owner_address()
    with stopped_in_the_middle(pid, lambda: being_spilled(folder, address), "a segment") as (
        victim,
        _,
    ):
        victim.kill()
    # Others get the room that they wait for, and who knows where an object is has it still, also if that was being written.
    assert get(more)
    assert being_spilled(folder, address) is None
    assert get(reader.check.remote([1, 2], BIG))
    with pytest.raises(OwnerDiedError, match=f"{refs[2].hex()}.* was killed by SIGKILL"):
        get(refs[2])


# --- a borrower --------------------------------------------------------------------------------------------------------


def test_borrower_idle(two: Cluster) -> None:
    first, second = holders(1, 1)
    lent, kept = (shoal.put(array(seed, LESS)) for seed in (1, 2))
    get(first.keep.remote([lent, kept]))
    get(second.keep.remote([kept]))
    id_ = lent.hex()
    del lent, kept
    assert get(first.check.remote([1, 2], LESS))
    assert is_known(id_)
    kill(pid_of(first))
    wait_until(lambda: not is_known(id_), "what only the dead had is given back")
    assert get(second.check.remote([2], LESS))


def test_borrower_mid_transfer(two: Cluster) -> None:
    first, second = holders(1, 1)
    pid = pid_of(first)
    ref = shoal.put(array(11))
    get([holder.keep.remote([ref]) for holder in (first, second)])
    here, there = two.nodes
    folder = shared_memory(there.session_dir)
    answer = first.check.remote([11])
    with stopped_in_the_middle(here.pid, lambda: arriving(folder, 11), "a copy"):
        kill(pid)
    with pytest.raises(ActorDiedError):
        get(answer)
    # Nobody waits for that copy any more. The next one who asks gets all of it.
    wait_until(lambda: copies_at(there.node_id) == 0, "half a copy is dropped")
    assert get(second.check.remote([11]))
    # One who dies does not take it from another who waits for the same.
    third, ref = *holders(1), shoal.put(array(12))
    get([holder.keep.remote([ref]) for holder in (second, third)])
    pid = pid_of(third)
    answers = [holder.check.remote([12]) for holder in (second, third)]
    with stopped_in_the_middle(here.pid, lambda: arriving(folder, 12), "a copy"):
        kill(pid)
    with pytest.raises(ActorDiedError):
        get(answers[1])
    assert get(answers[0])


def test_borrower_mid_spill(two: Cluster) -> None:
    owner, borrower, other = holders(1, 1, 1)
    pids = pid_of(owner), pid_of(borrower)
    refs = get(owner.put.remote(SEEDS, BIG))
    get(borrower.keep.remote(refs))
    get(owner.drop.remote())
    address = refs[0].owner_address()
    ids = {ref.hex() for ref in refs}
    del refs
    folder = spill_folder(two.nodes[1].session_dir)
    more = other.push_out.remote([4] * 3)
    with stopped_in_the_middle(pids[0], lambda: being_spilled(folder, address), "a segment"):
        # It had the last references: what is being written is dead when it is written.
        kill(pids[1])
    assert get(more)
    wait_until(lambda: not any(map(is_known, ids)), "all of them are freed")
    wait_until(lambda: files_on_disk(two, 1) == [], "and leave the disk")
    # The owner has its room again.
    assert get(owner.push_out.remote(SEEDS))


def test_a_lender_that_dies_before_its_borrower_is_known(two: Cluster) -> None:
    """No cell of the matrix, but what decision 0002 leaves open."""
    lender, borrower = holders(1, 1)
    # They are connected: what is sent will be read, whoever is dead then.
    get(lender.keep.remote([1, 2]))
    get(lender.lend.remote(borrower))
    wait_until(lambda: get(borrower.count.remote()) == 2, "they are connected")
    ref = shoal.put(array(1, LESS))
    get(lender.keep.remote([ref]))
    id_ = ref.hex()
    pid = pid_of(lender)
    with stopped(pid_of(borrower)):
        get(lender.lend.remote(borrower))
        del ref
        kill(pid)
        wait_until(lambda: not is_owned(id_), "nobody is known to have it")
    wait_until(lambda: get(borrower.count.remote()) == 1, "what was lent arrives")
    with pytest.raises(ObjectLostError, match=id_):
        get(borrower.check.remote([1], LESS))


# --- an executor -------------------------------------------------------------------------------------------------------


def test_executor_idle(two: Cluster) -> None:
    pid = the_only_worker(two, 1)
    refs = [make.options(**at(1)).remote(seed, LESS) for seed in SEEDS]
    wait_until_known(refs)
    view = get(refs[0])
    assert workers_of(two.nodes[1]) == {pid}
    kill(pid)
    # What it has made is there all the same.
    assert [is_right(value, seed, LESS) for value, seed in zip(get(refs), SEEDS, strict=True)] == [
        True
    ] * 3
    assert is_right(view, 1, LESS)
    # Nor is anything amiss with the next task.
    assert get(pid_of_a_worker.options(**at(1)).remote()) != pid


def test_executor_mid_transfer(two: Cluster, beside: ThreadPoolExecutor) -> None:
    here, there = two.nodes
    pid = the_only_worker(two, 1)
    # An argument is on its way to it: the task is tried again, by another.
    answer = check.options(**at(1)).remote(shoal.put(array(21)), 21)
    folder = shared_memory(there.session_dir)
    with stopped_in_the_middle(here.pid, lambda: arriving(folder, 21), "an argument"):
        assert workers_of(there) == {pid}
        kill(pid)
    right, second = get(answer)
    assert right
    assert second != pid
    # A result is on its way from it: it arrives.
    result = make.options(**at(1)).remote(22)
    wait_until_known([result])
    assert workers_of(there) == {second}
    value = beside.submit(get, result)
    folder = shared_memory(here.session_dir)
    with stopped_in_the_middle(there.pid, lambda: arriving(folder, 22), "a result"):
        kill(second)
        assert not value.done()
    assert is_right(value.result(), 22)


def test_executor_mid_spill(two: Cluster) -> None:
    pid = the_only_worker(two, 1)
    refs = [make.options(**at(1)).remote(seed, BIG) for seed in SEEDS]
    wait_until_known(refs)
    assert workers_of(two.nodes[1]) == {pid}
    (other,) = holders(1)
    address = creator_of(refs[0])
    folder = spill_folder(two.nodes[1].session_dir)
    more = other.push_out.remote([4] * 3)
    with stopped_in_the_middle(pid, lambda: being_spilled(folder, address), "a segment") as (
        victim,
        _,
    ):
        victim.kill()
    # The node writes what it has left, and others get the room.
    assert get(more)
    assert being_spilled(folder, address) is None
    get(other.keep.remote(refs))
    assert get(other.check.remote(SEEDS, BIG))
