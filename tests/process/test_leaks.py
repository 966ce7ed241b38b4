"""What is begun ends: sessions, failed starts, actors, objects, children that the program forks, programs that do not say goodbye."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import TaskError
from shoal.runtime import current_process
from shoal.wire.addresses import creator_at
from tests.api.counters import Counter
from tests.api.gates import wait_until
from tests.leaks import leaks_since, take_snapshot
from tests.process.programs import GONE_S, Program, children_named, end_of

MB = 1 << 20


def objects_known() -> int:
    """Entries in this process's table of objects."""
    process = current_process.require()
    with process.lock:
        process.settle()
        return len(process.objects.entries)


def live_blocks() -> int:
    """Objects that this process has made in shared memory and that live."""
    return current_process.require().store.arena.stats().live_blocks


def live_blocks_of(actor: Any) -> int:
    return int(shoal.get(actor.__ray_call__.remote(lambda _self: live_blocks())))


# --- sessions -------------------------------------------------------------------------------------------------------


def test_twenty_sessions_leave_nothing(session_root: Path) -> None:
    @shoal.remote
    def total(array: np.ndarray[Any, Any]) -> float:
        return float(array.sum())

    @shoal.remote
    class Keeper:
        def __init__(self) -> None:
            self.ref = shoal.put(np.ones(MB))

        def total(self) -> float:
            return float(shoal.get(self.ref).sum())

    views = []
    for n in range(20):
        shoal.init(num_cpus=2)
        ref = shoal.put(np.full(MB, n))
        keeper = Keeper.remote()
        assert shoal.get([total.remote(ref), keeper.total.remote()]) == [n * MB, MB]
        if n % 5 == 0:
            # A view that outlives its session stays readable.
            views.append(shoal.get(ref))
        shoal.shutdown()
        assert not shoal.is_initialized()
        assert not os.listdir(session_root)
        if n == 0:
            # Whatever is made once and for all has been made.
            del keeper, ref
            before = take_snapshot(session_root)
    assert [int(view[-1]) for view in views] == [0, 5, 10, 15]
    del keeper, ref, views
    gc.collect()
    assert leaks_since(before) == []


def test_a_handle_that_outlives_its_session_is_refused(session_root: Path) -> None:
    shoal.init(num_cpus=1)
    ref = shoal.put(5)
    actor = Counter.remote()
    assert shoal.get(actor.add.remote()) == 1
    shoal.shutdown()
    shoal.init(num_cpus=1)
    with pytest.raises(Exception, match="session"):
        shoal.get(actor.add.remote(), timeout=10)
    del actor, ref
    assert shoal.get(shoal.put(6)) == 6


def test_sessions_of_several_threads_in_turn(session_root: Path) -> None:
    """The runtime belongs to no thread: who began it may be gone when others use and end it."""

    def run_in_thread(function: Callable[[], object]) -> None:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - raised in the test's own thread below
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    @shoal.remote
    def twice(n: int) -> int:
        return 2 * n

    def use() -> None:
        assert shoal.get([twice.remote(n) for n in range(100)]) == [2 * n for n in range(100)]

    for _ in range(3):
        run_in_thread(lambda: shoal.init(num_cpus=2))
        use()
        run_in_thread(use)
        run_in_thread(shoal.shutdown)
        assert not os.listdir(session_root)


# --- starts that fail -----------------------------------------------------------------------------------------------


def never_answers(folder: Path) -> Path:
    """An interpreter that does nothing."""
    path = folder / "python"
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o700)
    return path


FAILING: dict[str, Callable[[Path], dict[str, Any]]] = {
    "an unknown option": lambda _: {"num_cpu": 2},
    "an unknown setting": lambda _: {"_system_config": {"windw_us": 5}},
    "negative CPUs": lambda _: {"num_cpus": -1},
    "CPUs as text": lambda _: {"num_cpus": "two"},
    "a resource that is not a number": lambda _: {"resources": {"x": "many"}},
    "a store of no size": lambda _: {"object_store_memory": 0},
    "a folder that is a file": lambda folder: {"_temp_dir": make_file(folder)},
    "a folder in a file": lambda folder: {"_temp_dir": f"{make_file(folder)}/sessions"},
    "a folder that cannot be made": lambda _: {"_temp_dir": "/proc/shoal"},
    "a folder of everybody": lambda folder: {"_temp_dir": make_open_folder(folder)},
    "a folder too deep": lambda folder: {"_temp_dir": make_deep_folder(folder)},
    "a namespace that is no text": lambda _: {"namespace": 5},
    "labels that are no text": lambda _: {"labels": {"zone": 5}},
    "an address": lambda _: {"address": "10.0.0.1:6379"},
    "a broken environment": lambda _: {"runtime_env": {"env_var": {}}},
    "an unknown level": lambda _: {"logging_level": "loud"},
}


def make_file(folder: Path) -> str:
    path = folder / "file"
    path.touch()
    return str(path)


def make_open_folder(folder: Path) -> str:
    path = folder / "open"
    path.mkdir()
    path.chmod(0o777)
    return str(path)


def make_deep_folder(folder: Path) -> str:
    path = folder / ("d" * 60) / ("e" * 60)
    path.mkdir(parents=True, mode=0o700)
    return str(path)


@pytest.mark.parametrize("name", FAILING.keys())
def test_a_start_with_bad_options_fails_by_name_and_leaves_nothing(
    tmp_path: Path, session_root: Path, name: str
) -> None:
    before = take_snapshot(session_root)
    with pytest.raises((RuntimeError, ValueError, TypeError, OSError)) as caught:
        shoal.init(**FAILING[name](tmp_path))
    assert str(caught.value)
    assert not shoal.is_initialized()
    del caught
    assert leaks_since(before) == []


@pytest.mark.parametrize(
    ("interpreter", "reason"),
    [
        ("/bin/false", "exit code 1"),
        ("/nowhere/python", "nowhere"),
        ("", "sys.executable"),
    ],
    ids=["ends", "is missing", "is unknown"],
)
def test_a_head_that_cannot_start_is_reported_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, session_root: Path, interpreter: str, reason: str
) -> None:
    before = take_snapshot(session_root)
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(Exception, match=reason) as caught:
        shoal.init(num_cpus=1)
    del caught
    gc.collect()
    assert leaks_since(before) == []
    monkeypatch.undo()
    shoal.init(num_cpus=1)
    assert shoal.get(shoal.put(1)) == 1


def test_a_head_that_never_answers_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_root: Path
) -> None:
    from shoal.runtime import driver

    launch = driver.launch_head
    before = take_snapshot(session_root)
    monkeypatch.setattr(sys, "executable", str(never_answers(tmp_path)))
    monkeypatch.setattr(driver, "launch_head", lambda *a, **k: launch(*a, timeout_s=0.2, **k))
    with pytest.raises(Exception, match="did not answer") as caught:
        shoal.init(num_cpus=1)
    del caught
    gc.collect()
    assert leaks_since(before) == []


# --- actors, tasks, objects -----------------------------------------------------------------------------------------


def test_the_processes_of_two_hundred_dropped_actors_end(cluster: Any) -> None:
    for _ in range(2):
        actors = [Counter.remote() for _ in range(100)]
        assert shoal.get([actor.add.remote() for actor in actors]) == [1] * 100
        processes = children_named("shoal:worker")
        assert len(processes) >= 100
        del actors
        wait_until(lambda: len(children_named("shoal:worker")) <= 4, "the actors' processes end")
    wait_until(lambda: objects_known() == 0, "nothing is known of them any more")
    assert shoal.available_resources()["CPU"] == 2


def test_actors_that_are_dropped_at_once_end_too(cluster: Any) -> None:
    """Their handles are gone before their processes exist."""
    for _ in range(50):
        Counter.remote()
    last = [Counter.remote().add.remote() for _ in range(20)]
    assert shoal.get(last) == [1] * 20
    del last
    wait_until(lambda: len(children_named("shoal:worker")) <= 4, "their processes end")
    wait_until(lambda: objects_known() == 0, "nothing is known of them any more")


def test_a_thousand_errors_leave_nothing(cluster: Any) -> None:
    @shoal.remote
    def fail(n: int, _payload: Any) -> None:
        raise ValueError(n)

    @shoal.remote
    def fail_inside(n: int) -> int:
        return shoal.get(fail.remote(n, None)) or 0

    payload = shoal.put(np.zeros(MB))
    refs = [fail_inside.remote(n) if n % 10 == 0 else fail.remote(n, payload) for n in range(1000)]
    for n, ref in enumerate(refs):
        with pytest.raises(ValueError, match=f"{n}") as caught:
            shoal.get(ref)
        assert isinstance(caught.value, TaskError)
    del refs, ref, caught, payload
    gc.collect()
    wait_until(lambda: objects_known() == 0, "every object is forgotten")
    assert live_blocks() == 0


def test_dropped_objects_are_freed_wherever_they_were_made(cluster: Any) -> None:
    @shoal.remote
    class Maker:
        def make(self, n: int) -> np.ndarray[Any, Any]:
            return np.full(MB, n)

        def lend(self, count: int) -> list[Any]:
            return [shoal.put(np.full(MB, n)) for n in range(count)]

        def keep(self, refs: list[Any]) -> int:
            self.kept = refs
            return len(refs)

        def drop(self) -> None:
            self.kept = []

    makers = [Maker.remote() for _ in range(2)]
    own = [shoal.put(np.full(MB, n)) for n in range(10)]
    made = [maker.make.remote(n) for maker in makers for n in range(5)]
    lent = [ref for maker in makers for ref in shoal.get(maker.lend.remote(5))]
    assert [int(array[0]) for array in shoal.get(own + made + lent)] == [
        *range(10),
        *(2 * [*range(5)]),
        *(2 * [*range(5)]),
    ]
    assert live_blocks() == 10
    assert [live_blocks_of(maker) for maker in makers] == [10, 10]
    # The other one borrows what the first has made and lent, and what is the driver's own.
    assert shoal.get(makers[1].keep.remote([*own, *made[:5], *lent[:5]])) == 20
    del own, made, lent
    wait_until(lambda: live_blocks_of(makers[1]) == 0, "what nobody borrows is freed")
    assert live_blocks() == 10
    assert live_blocks_of(makers[0]) == 10
    shoal.get(makers[1].drop.remote())
    wait_until(lambda: live_blocks() == 0, "the driver's objects are freed")
    wait_until(lambda: live_blocks_of(makers[0]) == 0, "the first actor's objects are freed")


def test_what_ended_workers_leave_goes_when_nobody_uses_it(cluster: Any) -> None:
    """Words about objects may miss a process that ends: it is the node's to find out what is still used."""
    folder = Path(cluster["object_store_address"])
    own = creator_at(current_process.require().address)

    def left() -> list[str]:
        return sorted(name for name in os.listdir(folder) if not name.startswith(own))

    @shoal.remote(max_calls=1)
    def make(*sizes: int) -> Any:
        made = [np.arange(size) for size in sizes]
        return made if len(made) > 1 else made[0]

    # One segment of its own, one block that is alone in its slab, and two that share one.
    large, small = make.remote(300_000), make.remote(50_000)
    first, second = make.options(num_returns=2).remote(50_000, 40_000)
    views = shoal.get([large, small, first, second])
    kept = views[3]
    del large, small, first
    wait_until(lambda: all("s" in name for name in left()), "only slabs and their locks are left")
    assert [int(view[-1]) for view in views] == [299_999, 49_999, 49_999, 39_999]
    del views
    wait_until(lambda: len(left()) == 2, "only the slab of the last object is left")
    assert int(kept[-1]) == int(shoal.get(second)[-1]) == 39_999
    del kept, second
    wait_until(lambda: left() == [], "nothing is left")


def test_killed_workers_leave_no_objects(cluster: Any) -> None:
    folder = Path(cluster["object_store_address"])

    @shoal.remote
    class Maker:
        def __init__(self) -> None:
            self.own = [shoal.put(np.ones(MB)), shoal.put(np.ones(50_000))]

        def make(self, size: int) -> np.ndarray[Any, Any]:
            return np.ones(size)

    maker = Maker.remote()
    refs = [maker.make.remote(size) for size in (MB, 50_000, 60_000, 70_000)]
    views = shoal.get(refs)
    before = sum(path.stat().st_blocks for path in folder.iterdir())
    shoal.kill(maker)
    # What it owned itself goes; what others own stays.
    wait_until(
        lambda: (
            sum(path.stat().st_blocks for path in folder.iterdir()) * 512 < before * 512 - 8 * MB
        ),
        "its own objects are freed",
    )
    del views
    assert [array.size for array in shoal.get(refs)] == [MB, 50_000, 60_000, 70_000]
    del refs
    wait_until(lambda: os.listdir(folder) == [], "nothing is left")


def test_a_long_chain_of_objects_inside_objects_is_freed(cluster: Any) -> None:
    ref = shoal.put([np.zeros(MB)])
    for _ in range(20_000):
        ref = shoal.put([ref])
    assert objects_known() == 20_001
    del ref
    assert objects_known() == 0
    assert live_blocks() == 0


# --- other processes of the program ---------------------------------------------------------------------------------

FORKS = """
import multiprocessing, shoal

context = shoal.init(num_cpus=2)

@shoal.remote
def twice(n):
    return 2 * n

def check():
    assert shoal.get([twice.remote(n) for n in range(500)]) == [2 * n for n in range(500)]
"""


def test_forked_children_do_not_disturb_the_session(tmp_path: Path) -> None:
    source = f"""{FORKS}
import numpy as np
ref = shoal.put(np.arange(100_000))
array = shoal.get(ref)
refs = [twice.remote(n) for n in range(2000)]
kinds = [
    lambda: os._exit(0),
    lambda: sys.exit(0),
    # With its own copies of all references, which die with it.
    lambda: (refs.clear(), globals().pop("ref"), os._exit(int(array[-1]) != 99_999)),
]
for n in range(9):
    pid = os.fork()
    if pid == 0:
        kinds[n % 3]()
    check()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check()
assert shoal.get(refs) == [2 * n for n in range(2000)]
assert shoal.get(ref)[-1] == 99_999
assert os.path.exists(context["session_dir"])
shoal.shutdown()
say("done")
"""
    with Program(tmp_path, source, variables={"PYTHONWARNINGS": "ignore"}) as program:
        program.expect("done", 60)
        program.wait()


def test_a_forked_child_may_have_a_session_of_its_own(tmp_path: Path) -> None:
    source = f"""{FORKS}
pid = os.fork()
if pid == 0:
    assert not shoal.is_initialized()
    inner = shoal.init(num_cpus=1)
    assert inner["session_dir"] != context["session_dir"]
    check()
    # The child ends without a shutdown.
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
check()
say("done")
"""
    with Program(tmp_path, source, variables={"PYTHONWARNINGS": "ignore"}) as program:
        program.expect("done", 60)
        program.wait()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_beside_shoal(tmp_path: Path, method: str) -> None:
    source = f"""{FORKS.replace("context = shoal.init(num_cpus=2)", "")}
def square(n):
    return n * n

if __name__ == "__main__":
    shoal.init(num_cpus=2)
    refs = [twice.remote(n) for n in range(1000)]
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        pending = pool.map_async(square, range(100))
        check()
        assert pending.get() == [n * n for n in range(100)]
    assert shoal.get(refs) == [2 * n for n in range(1000)]
    # And inside a task.
    @shoal.remote
    def in_task():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, range(-5, 0))
    assert shoal.get(in_task.remote()) == [5, 4, 3, 2, 1]
    check()
    say("done")
"""
    with Program(tmp_path, source, variables={"PYTHONWARNINGS": "ignore"}) as program:
        program.expect("done", 60)
        program.wait()


# --- programs that end ----------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[str, int]] = {
    "falls off its end": ("", 0),
    "calls sys.exit": ("sys.exit(3)", 3),
    "raises": ("raise ValueError('at top level')", 1),
    "calls os._exit": ("os._exit(4)", 4),
    "aborts": ("os.abort()", -6),
    "ends in a thread": (
        "threading.Thread(target=lambda: (time.sleep(0.2), shoal.get(waiting[0], timeout=0.1))).start()",
        0,
    ),
    "closes what it inherited": ("os.closerange(3, 200)", 0),
}


@pytest.mark.parametrize("name", ENDS.keys())
def test_a_program_that_ends_without_shutdown_leaves_nothing(tmp_path: Path, name: str) -> None:
    last, exit_code = ENDS[name]
    source = f"""
import resource, shoal, numpy as np
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
context = shoal.init(num_cpus=2)

@shoal.remote
def busy(path):
    child = subprocess.Popen(["sleep", "1000"])
    open(path, "w").close()
    time.sleep(1000)

@shoal.remote
class Actor:
    def array(self):
        return np.ones(200_000)

actor = Actor.remote()
waiting = [busy.remote("mark"), shoal.put(np.ones(200_000)), actor.array.remote()]
view = shoal.get(waiting[2])
while not os.path.exists("mark"):
    time.sleep(0.01)
say_session(context)
sys.stdin.readline()
{last}
"""
    with Program(tmp_path, source) as program:
        session = program.session()
        family = program.descendants()
        assert "sleep" in [process.name() for process in family]
        program.tell()
        program.wait(exit_code)
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        wait_until(lambda: not session.exist(), "its files are removed", GONE_S)


def test_exit_handlers_may_still_use_shoal(tmp_path: Path) -> None:
    """Those of the program, registered after the import, run before shoal's own; those before it find it over."""
    source = """
    import atexit

    def early():
        say("early", shoal.is_initialized())
        try:
            shoal.get(ref)
        except shoal.exceptions.ShoalError as error:
            say(type(error).__name__)

    atexit.register(early)
    import shoal, shoal.exceptions

    @shoal.remote
    def twice(n):
        return 2 * n

    atexit.register(lambda: say("late", shoal.get([twice.remote(4), ref])))
    shoal.init(num_cpus=2)
    ref = twice.remote(twice.remote(5))
    slow = shoal.remote(lambda: time.sleep(1000)).remote()
    atexit.register(lambda: say("latest", shoal.is_initialized()))
    """
    with Program(tmp_path, source) as program:
        program.expect("latest True")
        program.expect("late [8, 20]")
        program.expect("early False")
        program.expect("NotInitializedError")
        program.wait()
        assert not program.errors()
