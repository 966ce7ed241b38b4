"""The head or the zygote is killed under a driver: whatever waits is told so at once, and the program can begin a new session."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import shoal
from shoal.exceptions import ActorDiedError, NodeDiedError, ShoalError
from tests.api.gates import Gate, Trace, wait_until
from tests.process.programs import GONE_S, Program, children_named, end_of

PROMPT_S: Final = 3.0
"""Within this time everybody who waits must have been told."""

pytestmark = pytest.mark.usefixtures("cluster")


class Waits:
    """An actor whose call never returns."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def wait(self) -> None:
        self._trace.add("actor")
        time.sleep(1000)


@shoal.remote
def wait(trace: Trace) -> None:
    trace.add("task")
    time.sleep(1000)


@shoal.remote
def twice(n: int) -> int:
    return 2 * n


def kill(name: str) -> None:
    """Kill the process of the session that has a name."""
    (process,) = children_named(name)
    process.kill()


def kill_both() -> None:
    """Kill head and zygote, neither of which can clean up after the other."""
    processes = [*children_named("shoal:head"), *children_named("shoal:zygote")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            process.send_signal(number)


KILLS: Final[dict[str, Callable[[], None]]] = {
    "head": lambda: kill("shoal:head"),
    "zygote": lambda: kill("shoal:zygote"),
    "both": kill_both,
}

killing = pytest.mark.parametrize("kill_it", KILLS.values(), ids=KILLS.keys())


def begin(tmp_path: Path) -> list[Any]:
    """A task and a call that run, and one of each kind that waits behind them."""
    trace = Trace(tmp_path / "begun")
    actor = shoal.remote(Waits).remote(trace)
    refs = [wait.remote(trace), actor.wait.remote()]
    wait_until(lambda: len(trace) == 2, "task and call run")
    refs += [actor.wait.remote(), twice.options(num_cpus=2).remote(1), twice.remote(refs[0])]
    return refs


def kill_while(
    waiting: Callable[[], object], kill_it: Callable[[], None] = KILLS["head"]
) -> Exception:
    """Kill from another thread while this one is in `waiting`; what that raised, and soon."""

    def kill_when_it_sleeps() -> None:
        # The main thread's number is the process's.
        wait_until(lambda: _sleeps(os.getpid()), "the main thread sleeps")
        kill_it()
        times.append(time.monotonic())

    times: list[float] = []
    thread = threading.Thread(target=kill_when_it_sleeps)
    thread.start()
    try:
        with pytest.raises(ShoalError) as caught:
            waiting()
        heard = time.monotonic()
    finally:
        thread.join()
    assert heard - times[0] < PROMPT_S
    return caught.value


def _sleeps(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def assert_names_the_loss(error: BaseException) -> None:
    """It says that the session is over, and what to do."""
    assert isinstance(error, NodeDiedError | ActorDiedError), repr(error)
    assert "shoal.init()" in str(error), str(error)


def assert_a_new_session_works() -> None:
    shoal.shutdown()
    assert not shoal.is_initialized()
    shoal.init(num_cpus=2)
    assert shoal.get([twice.remote(n) for n in range(100)]) == [2 * n for n in range(100)]


@killing
def test_a_pending_get_is_told(tmp_path: Path, kill_it: Callable[[], None], cluster: Any) -> None:
    refs = begin(tmp_path)
    # Its own: servers of other tests may live as long as this run.
    (head,) = children_named("shoal:head")
    processes = [head, *head.children(recursive=True)]
    error = kill_while(lambda: shoal.get(refs[0]), kill_it)
    assert_names_the_loss(error)
    for ref in refs[1:]:
        with pytest.raises((NodeDiedError, ActorDiedError)) as caught:
            shoal.get(ref, timeout=PROMPT_S)
        assert_names_the_loss(caught.value)
    assert_a_new_session_works()
    wait_until(end_of(processes), "every process of the old session ends", GONE_S)
    assert not Path(cluster["session_dir"]).exists()
    assert not Path(cluster["object_store_address"]).exists()


def test_a_pending_wait_finds_them_ready(tmp_path: Path) -> None:
    refs = begin(tmp_path)

    def wait_for_all() -> None:
        ready, missing = shoal.wait(refs, num_returns=len(refs))
        assert ready == refs
        assert not missing
        shoal.get(ready)

    assert_names_the_loss(kill_while(wait_for_all))
    assert_a_new_session_works()


@killing
def test_every_waiting_thread_is_told(tmp_path: Path, kill_it: Callable[[], None]) -> None:
    refs = begin(tmp_path)
    errors: list[BaseException] = []

    def get(ref: Any) -> None:
        try:
            shoal.get(ref)
        except ShoalError as error:
            errors.append(error)

    threads = [threading.Thread(target=get, args=(ref,)) for ref in [*refs, *refs]]
    for thread in threads:
        thread.start()
    ids = [thread.native_id for thread in threads]
    wait_until(lambda: all(_sleeps(i) for i in ids if i is not None), "all threads wait")
    kill_it()
    killed_at = time.monotonic()
    for thread in threads:
        thread.join(2 * PROMPT_S)
    assert time.monotonic() - killed_at < PROMPT_S
    assert len(errors) == len(threads)
    for error in errors:
        assert_names_the_loss(error)
    assert_a_new_session_works()


def test_futures_and_coroutines_are_told(tmp_path: Path) -> None:
    refs = begin(tmp_path)

    async def gather() -> None:
        await asyncio.gather(*refs)

    future = refs[1].future()
    assert_names_the_loss(kill_while(lambda: asyncio.run(gather())))
    error = future.exception(timeout=PROMPT_S)
    assert error is not None
    assert_names_the_loss(error)
    assert_a_new_session_works()


def test_a_stream_is_told(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @shoal.remote(num_returns="streaming")
    def numbers() -> Any:
        yield 1
        gate.wait()
        yield 2

    stream = numbers.remote()
    assert shoal.get(next(stream)) == 1
    assert_names_the_loss(kill_while(lambda: shoal.get(next(stream))))
    assert list(stream) == []
    assert_a_new_session_works()


@killing
def test_what_is_asked_for_later_is_refused_and_what_is_known_stays(
    tmp_path: Path, kill_it: Callable[[], None]
) -> None:
    array = np.arange(200_000)
    known = [shoal.put(array), shoal.put("small"), twice.remote(4)]
    actor = shoal.remote(Waits).options(name="waits").remote(Trace(tmp_path / "begun"))
    shoal.get(known)
    refs = begin(tmp_path)
    kill_while(lambda: shoal.get(refs[0]), kill_it)
    values = shoal.get(known, timeout=PROMPT_S)
    assert np.array_equal(values[0], array)
    assert values[1:] == ["small", 8]
    late: list[Callable[[], object]] = [
        lambda: shoal.get(twice.remote(1), timeout=PROMPT_S),
        lambda: shoal.get(twice.remote(known[2]), timeout=PROMPT_S),
        lambda: shoal.get(actor.wait.remote(), timeout=PROMPT_S),
        lambda: shoal.get(shoal.remote(Waits).remote(None).wait.remote(), timeout=PROMPT_S),
        lambda: shoal.get_actor("waits"),
        shoal.nodes,
        lambda: shoal.put(np.zeros(100_000_000)),
    ]
    for ask in late:
        begun = time.monotonic()
        with pytest.raises(ShoalError, match=r"session is over|shut down|is dead"):
            ask()
        assert time.monotonic() - begun < PROMPT_S
    # What is without effect now does no harm.
    shoal.cancel(refs[0])
    shoal.kill(actor)
    assert_a_new_session_works()


LOSES = """
import shoal
shoal.init(num_cpus=2)

@shoal.remote
def begun(path):
    open(path, "w").close()
    time.sleep(1000)

ref = begun.remote("mark")
while not os.path.exists("mark"):
    time.sleep(0.01)
say("running")
"""


@pytest.mark.parametrize("name", ["shoal:head", "shoal:zygote"])
def test_a_program_that_does_not_expect_it_ends_with_the_reason(tmp_path: Path, name: str) -> None:
    with Program(tmp_path, f"{LOSES}\nshoal.get(ref)\n") as program:
        program.expect("running")
        family = program.descendants()
        (victim,) = [process for process in family if process.name() == name]
        os.kill(victim.pid, signal.SIGKILL)
        program.wait(1)
        errors = program.errors()
        assert "NodeDiedError" in errors
        assert "shoal.init()" in errors
        wait_until(end_of(family), "every process of the session ends", GONE_S)
