"""How actors are named and found, and how they end: `kill`, restarts, `exit_actor`, a failing `__init__`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorAlreadyExistsError, ActorDiedError, ActorError
from tests.api.gates import Gate, Trace, alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self) -> int:
        self.total += 1
        return self.total

    def pid(self) -> int:
        return os.getpid()

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def restarted(self) -> bool:
        return shoal.get_runtime_context().was_current_actor_reconstructed

    def wait(self, gate: Gate) -> None:
        gate.wait()

    def leave(self) -> None:
        shoal.actor.exit_actor()


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def call_until_alive(method: Any) -> Any:
    """Call until the actor is back; calls in between may fail."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return shoal.get(method.remote(), timeout=30)
        except ActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# --- names ---------------------------------------------------------------------------------------------------------------


def test_an_actor_is_found_by_its_name() -> None:
    counter = Counter.options(name="found").remote(5)
    found = shoal.get_actor("found")
    assert found == counter
    assert get(found.add.remote()) == 6

    @shoal.remote
    def find() -> int:
        return shoal.get(shoal.get_actor("found").add.remote(), timeout=30)

    assert get(find.remote()) == 7


@pytest.mark.parametrize("name", ["nobody", ""])
def test_a_name_that_nobody_has(name: str) -> None:
    with pytest.raises(ValueError):
        shoal.get_actor(name)


def test_a_name_is_taken_once_in_a_namespace() -> None:
    first = Counter.options(name="taken").remote()
    with pytest.raises(ValueError, match="taken") as caught:
        Counter.options(name="taken").remote()
    assert isinstance(caught.value, ActorAlreadyExistsError)
    elsewhere = Counter.options(name="taken", namespace="elsewhere").remote()
    assert elsewhere != first
    assert shoal.get_actor("taken", namespace="elsewhere") == elsewhere
    assert shoal.get_actor("taken") == first


def test_get_if_exists_makes_one_or_takes_it() -> None:
    options = {"name": "single", "get_if_exists": True}
    first = Counter.options(**options).remote(10)
    second = Counter.options(**options).remote(99)
    assert first == second
    assert get(second.add.remote()) == 11


def test_get_if_exists_makes_one_however_many_ask() -> None:
    @shoal.remote(num_cpus=0.25)
    def ask(i: int) -> int:
        counter = Counter.options(
            name="contested", get_if_exists=True, lifetime="detached"
        ).remote()
        return shoal.get(counter.add.remote(), timeout=30)

    assert sorted(get([ask.remote(i) for i in range(8)])) == list(range(1, 9))
    shoal.kill(shoal.get_actor("contested"))
    wait_until(lambda: not named("contested"), "the actor is gone")


def test_a_name_is_free_again_after_the_actor() -> None:
    counter = Counter.options(name="reused").remote()
    get(counter.add.remote())
    shoal.kill(counter)
    wait_until(lambda: not named("reused"), "the name is free")
    assert get(Counter.options(name="reused").remote(1).add.remote()) == 2


def named(name: str) -> bool:
    try:
        shoal.get_actor(name)
    except ValueError:
        return False
    return True


def test_a_named_actor_still_ends_with_its_last_handle() -> None:
    counter = Counter.options(name="counted").remote()
    pid = get(counter.pid.remote())
    del counter
    wait_until(lambda: not alive(pid), "the actor's process ends")
    wait_until(lambda: not named("counted"), "its name is gone")
    # It is free, and whoever takes it gets an actor that has counted nothing.
    assert get(Counter.options(name="counted").remote().add.remote()) == 1


def test_a_detached_actor_stays_until_it_is_killed() -> None:
    counter = Counter.options(name="detached", lifetime="detached").remote()
    pid = get(counter.pid.remote())
    del counter
    # Other actors without handles go meanwhile; this one does not.
    other = Counter.remote()
    other_pid = get(other.pid.remote())
    del other
    wait_until(lambda: not alive(other_pid), "the ordinary actor ends")
    found = shoal.get_actor("detached")
    assert get(found.pid.remote()) == pid
    shoal.kill(found)
    wait_until(lambda: not alive(pid), "the detached actor ends")


# --- kill ------------------------------------------------------------------------------------------------------------------


def test_kill_ends_the_actor_and_fails_what_waits(gates: Callable[[str], Gate]) -> None:
    gate = gates("never")
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    waiting = [counter.wait.remote(gate), counter.add.remote()]
    shoal.kill(counter)
    for ref in waiting:
        with pytest.raises(ActorDiedError):
            get(ref)
    wait_until(lambda: not alive(pid), "the actor's process ends")
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())
    shoal.kill(counter)


def test_kill_before_it_could_begin() -> None:
    counter = Counter.options(resources={"unobtainable": 1}).remote()
    ref = counter.add.remote()
    assert shoal.wait([ref], timeout=0.1)[0] == []
    shoal.kill(counter)
    with pytest.raises(ActorDiedError):
        get(ref)


def test_kill_takes_actors_only() -> None:
    with pytest.raises(ValueError):
        shoal.kill(shoal.remote(lambda: 1).remote())


def test_kill_does_not_restart_unless_it_may() -> None:
    counter = Counter.options(max_restarts=-1).remote(10)
    first = get(counter.pid.remote())
    shoal.kill(counter, no_restart=False)
    wait_until(lambda: not alive(first), "the actor's process ends")
    second = call_until_alive(counter.pid)
    assert second != first
    shoal.kill(counter)
    wait_until(lambda: not alive(second), "the actor's second process ends")
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


# --- crashes and restarts ----------------------------------------------------------------------------------------------------


def test_a_crash_ends_an_actor_without_restarts() -> None:
    counter = Counter.remote()
    with pytest.raises(ActorError):
        get(counter.crash.remote())
    with pytest.raises(ActorDiedError) as caught:
        get(counter.add.remote())
    assert caught.value.actor_id == counter._actor_id.hex()


def test_a_crashed_actor_begins_anew_with_its_arguments() -> None:
    counter = Counter.options(max_restarts=1).remote(10)
    assert get(counter.add.remote()) == 11
    assert not get(counter.restarted.remote())
    with pytest.raises(ActorError):
        get(counter.crash.remote())
    assert call_until_alive(counter.add) == 11
    assert get(counter.restarted.remote())
    with pytest.raises(ActorError):
        get(counter.crash.remote())
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_calls_are_repeated_as_often_as_allowed(traces: Callable[[str], Trace]) -> None:
    tried = traces("tried")

    @shoal.remote(max_restarts=-1, max_task_retries=2)
    class Fragile:
        def crash(self, times: int) -> int:
            tried.add("try")
            if len(tried) <= times:
                os._exit(1)
            return len(tried)

    fragile = Fragile.remote()
    assert get(fragile.crash.remote(2)) == 3
    with pytest.raises(ActorError):
        get(fragile.crash.remote(1_000))
    assert len(tried) == 6


def test_exceptions_of_methods_are_retried_as_asked(traces: Callable[[str], Trace]) -> None:
    tried = traces("tried")

    @shoal.remote
    class Moody:
        @shoal.method(max_task_retries=3, retry_exceptions=[ValueError])
        def third_time(self) -> int:
            tried.add("try")
            if len(tried) < 3:
                raise ValueError("not yet")
            return len(tried)

        @shoal.method(max_task_retries=3, retry_exceptions=[KeyError])
        def other(self) -> None:
            tried.add("try")
            raise ValueError("never")

    moody = Moody.remote()
    assert get(moody.third_time.remote()) == 3
    with pytest.raises(ValueError, match="never"):
        get(moody.other.remote())
    assert len(tried) == 4


# --- leaving ---------------------------------------------------------------------------------------------------------------


def test_exit_actor_ends_it_for_good() -> None:
    counter = Counter.options(max_restarts=-1).remote()
    pid = get(counter.pid.remote())
    with pytest.raises(ActorDiedError):
        get(counter.leave.remote())
    wait_until(lambda: not alive(pid), "the actor's process ends")
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_exit_actor_of_an_async_actor() -> None:
    @shoal.remote
    class Leaver:
        async def pid(self) -> int:
            return os.getpid()

        async def leave(self) -> None:
            shoal.actor.exit_actor()

    leaver = Leaver.remote()
    pid = get(leaver.pid.remote())
    with pytest.raises(ActorDiedError):
        get(leaver.leave.remote())
    wait_until(lambda: not alive(pid), "the actor's process ends")


def test_exit_actor_is_for_actors() -> None:
    with pytest.raises(TypeError):
        shoal.actor.exit_actor()


def test_exit_handlers_run_when_an_actor_leaves(traces: Callable[[str], Trace]) -> None:
    ended = traces("ended")

    @shoal.remote
    class Tidy:
        def __init__(self) -> None:
            import atexit

            atexit.register(ended.add, "atexit")

        def here(self) -> bool:
            return True

    tidy = Tidy.remote()
    assert get(tidy.here.remote())
    del tidy
    wait_until(lambda: ended.words() == ["atexit"], "the exit handler runs")


# --- __init__ ----------------------------------------------------------------------------------------------------------------


def test_a_failing_init_is_reported_by_every_call() -> None:
    @shoal.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("cannot begin")

        def answer(self) -> int:
            return 1

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="cannot begin") as caught:
            get(broken.answer.remote())
        assert caught.value.actor_init_failed
        assert "__init__" in str(caught.value)


def test_an_argument_that_failed_ends_the_actor_before_it_begins() -> None:
    @shoal.remote(max_retries=0)
    def fail() -> int:
        raise ValueError("no start value")

    counter = Counter.remote(fail.remote())
    with pytest.raises(shoal.ShoalError, match="no start value"):
        get(counter.add.remote())


def test_init_may_take_its_time(gates: Callable[[str], Gate]) -> None:
    gate = gates("init")

    @shoal.remote
    class Slow:
        def __init__(self) -> None:
            gate.wait()

        def answer(self) -> int:
            return 42

    slow = Slow.remote()
    ref = slow.answer.remote()
    assert shoal.wait([ref], timeout=0)[0] == []
    gate.open()
    assert get(ref) == 42
