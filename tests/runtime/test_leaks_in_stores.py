"""Which blocks leak, told from the answers of processes and nodes: and when nothing can be told, since an answer is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.messages.inventory import (
    COUNTED,
    FREED,
    MADE,
    VIEWED,
    Arena,
    Block,
    Estate,
    ProcessMemory,
    StoreMemory,
)
from shoal.messages.state import Findings
from shoal.messages.values import Location
from shoal.util.memory import unaccounted

PLACE, ELSEWHERE = "10.0.0.1:1", "10.0.0.2:1"
MAKER, OWNER = f"{PLACE}/w-00000001", f"{ELSEWHERE}/d-00000002"
BLOCK = Location("00000001-0", 0, 5_000, 7)


def process(address: str, *blocks: Block, left_out: int = 0) -> ProcessMemory:
    return ProcessMemory(address, 1, "worker", Arena(), [], list(blocks), left_out)


def store(
    *,
    estates: list[Estate] | None = None,
    strays: list[tuple[str, int]] | None = None,
    unknown: list[Location] | None = None,
) -> StoreMemory:
    return StoreMemory(
        b"n" * 16, PLACE, 1, [], Arena(), [], 0, estates or [], strays or [], unknown or [], []
    )


def whys(*processes: ProcessMemory, stores: list[StoreMemory] | None = None) -> list[str]:
    found = Findings(processes=list(processes), stores=stores or [])
    return [leak.why for leak in unaccounted(found).values()]


def test_what_its_owner_counts_on_does_not_leak() -> None:
    maker = process(MAKER, Block(MADE, PLACE, BLOCK, OWNER))
    assert whys(maker, process(OWNER, Block(COUNTED, PLACE, BLOCK))) == []


def test_what_its_owner_does_not_know_leaks() -> None:
    maker = process(MAKER, Block(MADE, PLACE, BLOCK, OWNER))
    (why,) = whys(maker, process(OWNER))
    assert "which does not know of it" in why


def test_what_was_there_before_at_the_same_place_is_another_block() -> None:
    maker = process(MAKER, Block(MADE, PLACE, BLOCK, OWNER))
    earlier = Location(BLOCK.segment, BLOCK.offset, BLOCK.size, BLOCK.serial - 1)
    assert len(whys(maker, process(OWNER, Block(COUNTED, PLACE, earlier)))) == 1
    assert len(whys(maker, process(OWNER, Block(COUNTED, ELSEWHERE, BLOCK)))) == 1


def test_what_was_made_for_nobody_leaks_unless_somebody_counts_on_it() -> None:
    maker = process(MAKER, Block(MADE, PLACE, BLOCK))
    (why,) = whys(maker, process(OWNER))
    assert "no process accounts for it" in why
    assert whys(maker, process(OWNER, Block(COUNTED, PLACE, BLOCK))) == []


def test_what_an_owner_left_that_has_ended_leaks_unless_a_borrower_has_it() -> None:
    maker = process(MAKER, Block(MADE, PLACE, BLOCK, OWNER))
    (why,) = whys(maker)
    assert "which has ended" in why
    borrower = process(f"{PLACE}/w-00000003", Block(COUNTED, PLACE, BLOCK))
    assert whys(maker, borrower) == []


def test_views_and_freed_blocks_are_no_leaks() -> None:
    maker = process(MAKER, Block(FREED, PLACE, BLOCK), Block(VIEWED, PLACE, BLOCK))
    assert whys(maker) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.silent.append("worker (pid 9)"),
        lambda found: found.processes.append(process(f"{PLACE}/w-00000009", left_out=1)),
    ],
)
def test_nothing_is_said_of_blocks_that_one_may_count_on_who_has_not_told_all(
    spoil: Callable[[Findings], None],
) -> None:
    found = Findings(
        processes=[process(MAKER, Block(MADE, PLACE, BLOCK))],
        stores=[store(estates=[Estate("a", [("00000005-1", 10)])])],
        silent=[],
    )
    assert len(unaccounted(found)) == 2
    spoil(found)
    assert unaccounted(found) == {}


def test_an_owner_that_answered_in_full_is_enough() -> None:
    found = Findings(
        processes=[process(MAKER, Block(MADE, PLACE, BLOCK, OWNER)), process(OWNER)],
        silent=["worker (pid 9)"],
    )
    assert len(unaccounted(found)) == 1
    found.processes[1].blocks_left_out = 1
    assert unaccounted(found) == {}


def test_what_the_dead_left_leaks_unless_somebody_counts_on_it() -> None:
    estates = [Estate(f"{PLACE}/w-00000005", [("00000005-0", 10), ("00000005-1", 20)])]
    used = process(OWNER, Block(COUNTED, PLACE, Location("00000005-0", 0, 10, 1)))
    (leak,) = unaccounted(Findings(processes=[used], stores=[store(estates=estates)])).values()
    assert (leak.segment, leak.size) == ("00000005-1", 20)
    assert "left it when it ended" in leak.why


def test_files_of_nobody_and_blocks_that_are_no_copy_leak() -> None:
    (why,) = whys(stores=[store(strays=[("0000000a-0", 10)])])
    assert "no process that lives" in why
    (why,) = whys(stores=[store(unknown=[BLOCK])])
    assert "for no copy that it knows of" in why
