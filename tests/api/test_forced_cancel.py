"""`cancel(force=True)` with other tasks on the same worker: the innocent are not harmed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.core.tasks import State
from shoal.exceptions import TaskCancelledError, WorkerCrashedError
from tests.api.gates import Gate, Trace, wait_until

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    # Tasks are queued behind one another deeply, and stay there while the first one runs.
    pytest.mark.cluster(
        num_cpus=1, _system_config={"window_us": 10_000_000, "handback_us": 1_000_000_000}
    ),
]


@shoal.remote
def work(begun: Gate | None, gate: Gate | None, trace: Trace | None) -> int:
    if trace is not None:
        trace.add("begin")
    if begun is not None:
        begun.open()
    if gate is not None:
        gate.wait(60)
    return os.getpid()


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def test_what_runs_before_and_waits_behind_a_task_survives_its_forced_cancel(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    # The function is known to be short from now on.
    get([work.remote(None, None, None) for _ in range(20)])
    begun, gate = gates("begun"), gates("gate")
    first, second, third = traces("first"), traces("second"), traces("third")
    running = work.remote(begun, gate, first)
    begun.wait()
    victim = work.remote(None, None, second)
    behind = work.remote(None, None, third)
    assert victim._entry.task.state is State.PUSHED
    shoal.cancel(victim, force=True)
    with pytest.raises(TaskCancelledError):
        get(victim)
    gate.open()
    assert get(running) == get(behind)
    assert (first.words(), second.words(), third.words()) == (["begin"], [], ["begin"])


def test_what_is_queued_behind_a_task_that_is_killed_runs_elsewhere(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    get([work.remote(None, None, None) for _ in range(20)])
    begun, never, trace = gates("begun"), gates("never"), traces("behind")
    victim = work.options(max_retries=3).remote(begun, never, None)
    begun.wait()
    behind = [work.options(max_retries=3).remote(None, None, trace) for _ in range(5)]
    shoal.cancel(victim, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        get(victim)
    get(behind)
    wait_until(lambda: trace.words() == ["begin"] * 5, "each runs once")
