"""Nodes that run short of memory: who is ended, what is tried again, and what the user is told.

The limit is the setting `memory_limit_bytes`, so that nothing here comes near what the machine has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import shoal
from shoal.exceptions import (
    ActorDiedError,
    OutOfMemoryError,
    TaskCancelledError,
    WorkerCrashedError,
)
from shoal.util.state import why
from tests.api.gates import Gate, Trace, alive, wait_until
from tests.api.scripts import run_script

MIB: Final = 1 << 20
LIMIT: Final = 400 * MIB
TIGHT: Final = {
    "memory_limit_bytes": LIMIT,
    "memory_monitor_refresh_ms": 50,
    "oom_retry_ms": 50,
    "oom_retry_most_ms": 200,
    "task_oom_retries": 2,
}
NEVER: Final = Gate(Path("/nonexistent/never"))
PATIENT: Final = TIGHT | {"task_oom_retries": 1_000}

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.cluster(num_cpus=2)]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=60)


def take(mib: int) -> bytes:
    """Memory that is really there: every page is written to."""
    return b"x" * (mib * MIB)


@shoal.remote
def hog(mib: int, trace: Trace, gate: Gate) -> int:
    """Has so much until the gate opens."""
    memory = take(mib)
    trace.add(os.getpid())
    gate.wait(60)
    return len(memory)


@shoal.remote
def greedy(mib: int, trace: Trace, gate: Gate = NEVER) -> int:
    """Wants so much and tells before it does."""
    trace.add(os.getpid())
    memory = take(mib)
    gate.wait(60)
    return len(memory)


@pytest.mark.cluster(_system_config=TIGHT)
def test_a_task_that_needs_too_much_fails_and_says_how_much(
    traces: Callable[[str], Trace],
) -> None:
    trace = traces("tries")
    with pytest.raises(OutOfMemoryError) as caught:
        get(greedy.options(max_retries=1).remote(500, trace))
    # Twice by `task_oom_retries`. That `max_retries` is 1 does not matter.
    assert len(trace) == len(set(trace.words())) == 3
    text = str(caught.value)
    assert text.startswith("greedy() ran out of memory 3 times")
    assert "task_oom_retries" in text
    assert f"pid={trace.words()[-1]}" in text
    most = re.search(r"most that it had of these times was ([\d.]+) MiB", text)
    assert most is not None
    assert 300 < float(most[1]) < 700
    assert "of the 400 MiB of this node's memory_limit_bytes" in text
    assert "the object store" in text
    assert "docs/out-of-memory.md" in text


@pytest.mark.cluster(_system_config=TIGHT)
def test_a_task_that_may_not_be_tried_again_fails_at_once(traces: Callable[[str], Trace]) -> None:
    trace = traces("tries")
    with pytest.raises(OutOfMemoryError, match="max_retries=0"):
        get(greedy.options(max_retries=0).remote(500, trace))
    assert len(trace) == 1


@pytest.mark.cluster(_system_config=TIGHT)
def test_what_a_task_has_started_counts_and_ends_with_it(traces: Callable[[str], Trace]) -> None:
    trace = traces("children")
    program = f"import os, time; open({str(trace._path)!r}, 'a').write(f'{{os.getpid()}}\\n'); m = b'x' * (500 << 20); time.sleep(60)"

    @shoal.remote(max_retries=0)
    def start() -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    with pytest.raises(OutOfMemoryError):
        get(start.remote())
    (child,) = trace.words()
    wait_until(lambda: not alive(int(child)), "the child ends, too")


@pytest.mark.cluster(_system_config=TIGHT)
def test_a_crash_is_still_a_crash(traces: Callable[[str], Trace]) -> None:
    @shoal.remote(max_retries=0)
    def crash() -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(WorkerCrashedError):
        get(crash.remote())


@pytest.mark.cluster(_system_config=PATIENT)
def test_the_newest_is_tried_again_until_there_is_room(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    first, second = traces("first"), traces("second")
    first_ends, second_ends = gates("first"), gates("second")
    old = hog.remote(250, first, first_ends)
    wait_until(lambda: len(first), "the first has its memory")
    new = greedy.remote(250, second, second_ends)
    wait_until(lambda: len(second), "the second begins")
    victim = int(second.words()[0])
    wait_until(lambda: not alive(victim), "the second is ended")
    first_ends.open()
    assert get(old) == 250 * MIB
    second_ends.open()
    assert get(new) == 250 * MIB
    assert len(first) == 1
    assert len(second) > 1


@pytest.mark.cluster(_system_config=PATIENT)
def test_one_that_may_not_be_tried_again_is_spared(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    older, newer = traces("older"), traces("newer")
    older_ends, newer_ends = gates("older"), gates("newer")
    retriable = hog.remote(250, older, older_ends)
    wait_until(lambda: len(older), "the older has its memory")
    victim = int(older.words()[0])
    spared = hog.options(max_retries=0).remote(250, newer, newer_ends)
    wait_until(lambda: not alive(victim), "the older is ended")
    wait_until(lambda: len(newer), "the newer has its memory")
    newer_ends.open()
    assert get(spared) == 250 * MIB
    older_ends.open()
    assert get(retriable) == 250 * MIB
    assert len(newer) == 1


@pytest.mark.cluster(
    _system_config=TIGHT | {"oom_retry_ms": 3_600_000, "oom_retry_most_ms": 3_600_000}
)
def test_a_task_that_pauses_can_be_cancelled_and_says_why_it_waits(
    traces: Callable[[str], Trace],
) -> None:
    trace = traces("tries")
    ref = greedy.remote(500, trace)
    wait_until(lambda: len(trace), "it begins")
    task_id = ref.task_id().hex()

    wait_until(lambda: "because memory was short" in str(why(task_id)), "it pauses")
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    assert len(trace) == 1


@shoal.remote
class Glutton:
    def __init__(self, trace: Trace) -> None:
        trace.add(os.getpid())

    def eat(self, mib: int, gate: Gate = NEVER) -> int:
        memory = take(mib)
        gate.wait(60)
        return len(memory)

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.cluster(_system_config=TIGHT)
def test_an_idle_worker_goes_before_one_that_works(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    @shoal.remote
    def keep(mib: int) -> int:
        os.kept_by_test = take(mib)  # type: ignore[attr-defined]  # a place that lasts as long as the process
        return os.getpid()

    trace, gate = traces("lives"), gates("busy")
    idle = get(keep.remote(250))
    # Actors begin in workers that nobody has used.
    glutton = Glutton.remote(trace)
    eaten = glutton.eat.remote(200, gate)
    wait_until(lambda: not alive(idle), "the idle worker goes")
    gate.open()
    assert get(eaten) == 200 * MIB
    assert len(trace) == 1


@pytest.mark.cluster(_system_config=TIGHT)
def test_an_actor_restarts_as_often_as_it_may(traces: Callable[[str], Trace]) -> None:
    trace = traces("lives")
    glutton = Glutton.options(max_restarts=1, max_task_retries=-1).remote(trace)
    with pytest.raises(ActorDiedError, match="memory monitor"):
        get(glutton.eat.remote(500))
    assert len(trace) == 2


@pytest.mark.cluster(_system_config=TIGHT)
def test_an_actor_that_may_not_restart_is_dead_and_says_why(traces: Callable[[str], Trace]) -> None:
    glutton = Glutton.remote(traces("lives"))
    with pytest.raises(ActorDiedError, match=r"killed by the memory monitor .* had [\d.]+ MiB"):
        get(glutton.eat.remote(500))
    with pytest.raises(ActorDiedError, match="memory monitor"):
        get(glutton.pid.remote())


def test_the_driver_and_the_log_of_the_node_tell(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        f"""
        import os, time
        from pathlib import Path
        import shoal
        from shoal.runtime import current_process
        from shoal.wire.session import head_log
        shoal.init(num_cpus=1, _system_config={TIGHT | {"task_oom_retries": 0}})

        @shoal.remote
        def swallow():
            memory = b"x" * (500 << 20)
            time.sleep(60)

        ref = swallow.remote()
        try:
            shoal.get(ref, timeout=60)
        except shoal.exceptions.OutOfMemoryError:
            print("out of memory")
        session = current_process.process.session_dir
        Path("log").write_text(Path(head_log(session)).read_text())
        """,
    )
    assert result.stdout == "out of memory\n"
    told = [line for line in result.stderr.splitlines() if "memory monitor" in line]
    assert len(told) == 1
    assert re.search(r"the worker with pid \d+, which .* swallow\(\), was killed by", told[0])
    assert "tried again" in told[0]
    log = (tmp_path / "log").read_text()
    assert "was killed by the memory monitor of its node" in log
    assert "At that time these had memory on the node: the object store" in log
