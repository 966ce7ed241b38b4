from __future__ import annotations

import tracemalloc

from shoal.messages.node import TaskEvent
from shoal.node.past_runs import PastRuns


def events(first: int, count: int) -> list[TaskEvent]:
    return [
        TaskEvent(
            n.to_bytes(16, "big"), f"task {n}", "task", 4_000_000, 10**18 + n, 10**18, n % 2 == 0
        )
        for n in range(first, first + count)
    ]


def test_the_latest_are_shown_as_they_were() -> None:
    past = PastRuns(100)
    for worker in range(10):
        past.add(f"local/w-{worker}", b"j" * 16, events(1_000 * worker, 30))
    past.add("local/w-11", b"j" * 16, [])
    rows = past.rows()
    assert [row.name for row in rows] == [
        event.name for worker in (7, 8, 9) for event in events(1_000 * worker, 30)
    ]
    assert {row.worker for row in rows} == {"local/w-7", "local/w-8", "local/w-9"}
    assert (rows[0].pid, rows[0].start_ns, rows[0].state) == (4_000_000, 10**18 + 7_000, "FINISHED")
    assert rows[1].state == "FAILED"


def test_they_take_little_memory() -> None:
    past = PastRuns(100_000)
    tracemalloc.start()
    try:
        for worker in range(100):
            past.add(f"local/w-{worker}", b"j" * 16, events(1_000 * worker, 1_000))
        assert tracemalloc.get_traced_memory()[0] < 100 * 100_000
    finally:
        tracemalloc.stop()
    assert len(past.rows()) == 100_000
