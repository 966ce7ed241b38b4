"""How often a task is tried again whose worker was ended for want of memory, and after which pauses."""

from __future__ import annotations

import pytest

from shoal.core.memory_report import Bound, MemoryUse, in_use, kernel_clause, monitor_clause, report
from shoal.core.memory_retries import Shortages

MIB = 1 << 20


def ended(times: int, *, alone: bool = False) -> Shortages:
    shortages = Shortages()
    for number in range(times):
        shortages.on_end(number * MIB, alone=alone)
    return shortages


def test_as_often_as_allowed_and_not_once_more() -> None:
    assert not ended(2).why_not(2)
    assert "2 times" in ended(3).why_not(2)
    assert ended(1).why_not(0)


def test_for_ever() -> None:
    assert not ended(1_000, alone=True).why_not(-1)


def test_who_had_the_node_to_itself_will_not_find_more_room() -> None:
    assert not ended(2, alone=True).why_not(15)
    assert "no other worker" in ended(3, alone=True).why_not(15)
    assert not ended(3).why_not(15)


def test_the_most_that_it_ever_had_is_kept() -> None:
    shortages = ended(4)
    shortages.on_end(0, alone=False)
    assert shortages.most_bytes == 3 * MIB


def test_pauses_double_up_to_a_limit() -> None:
    pauses = [ended(times).pause_ms(1_000, 60_000) for times in range(1, 9)]
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    assert ended(10_000).pause_ms(1_000, 60_000) == 60_000


def test_what_people_are_told() -> None:
    bound = Bound("the machine", 970 * MIB, 1000 * MIB, 0.95)
    assert in_use(bound) == "970 MiB of the 1000 MiB of the machine were in use, more than 95 %"
    assert monitor_clause(bound, 512 * MIB).endswith("it had 512 MiB for itself")


def test_a_report_names_the_biggest() -> None:
    workers = [MemoryUse(f"worker {number}", number * MIB) for number in range(1, 9)]
    text = report(64 * MIB, workers, [MemoryUse("browser (pid 7)", 300 * MIB)])
    assert "the object store 64 MiB; worker 8 8 MiB; worker 7 7 MiB" in text
    assert "3 other workers 6 MiB." in text
    assert text.endswith("browser (pid 7) 300 MiB.")


@pytest.mark.parametrize(("kills", "text"), [(1, "killed a process"), (2, "killed 2 processes")])
def test_what_the_kernel_did_is_told_as_a_guess(kills: int, text: str) -> None:
    assert text in kernel_clause(kills)
    assert "most likely" in kernel_clause(kills)
