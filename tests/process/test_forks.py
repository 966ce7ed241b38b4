"""Processes that a program starts beside shoal: forks, which may use nothing of it and disturb nothing, and new interpreters, which may."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

from tests.api.gates import DEADLINE_S, alive, wait_until
from tests.api.scripts import run_script
from tests.process.programs import GONE_S, Program

# A session with something of everything, and what can be called.
SETTING = """
import asyncio, os, sys, threading, time, traceback
import numpy as np
import shoal
from shoal.util import state
from shoal.util.placement_group import placement_group

shoal.init(num_cpus=2)

@shoal.remote
def double(x):
    return x * 2

@shoal.remote
class Counter:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count

@shoal.remote
def count_to(n):
    yield from range(n)

counter = Counter.remote()
assert shoal.get(counter.add.remote()) == 1
small, large = shoal.put(7), shoal.put(np.arange(300_000))
array = shoal.get(large)
assert shoal.get(double.remote(small)) == 14
stream = count_to.remote(3)
assert shoal.get(next(stream)) == 0
never = Counter.options(resources={"none of it": 1}).remote().add.remote()
group = placement_group([{"CPU": 1}])

CALLS = {
    "get": lambda: shoal.get(small),
    "get of many": lambda: shoal.get([small, large], timeout=5),
    "get of what never comes": lambda: shoal.get(never),
    "put": lambda: shoal.put(1),
    "put of much": lambda: shoal.put(np.zeros(300_000)),
    "wait": lambda: shoal.wait([never]),
    "a task": lambda: double.remote(1),
    "a task with options": lambda: double.options(num_cpus=2).remote(1),
    "a new task": lambda: shoal.remote(len).remote([]),
    "a call": lambda: counter.add.remote(),
    "an actor": lambda: Counter.remote(),
    "get_actor": lambda: shoal.get_actor("somebody"),
    "kill": lambda: shoal.kill(counter),
    "cancel": lambda: shoal.cancel(never),
    "exit_actor": lambda: shoal.actor.exit_actor(),
    "future": lambda: small.future(),
    "await": lambda: asyncio.run(awaited()),
    "next": lambda: next(stream),
    "is_finished": lambda: stream.is_finished(),
    "nodes": lambda: shoal.nodes(),
    "cluster_resources": lambda: shoal.cluster_resources(),
    "available_resources": lambda: shoal.available_resources(),
    "timeline": lambda: shoal.timeline(),
    "get_runtime_context": lambda: shoal.get_runtime_context(),
    "get_gpu_ids": lambda: shoal.get_gpu_ids(),
    "list_tasks": lambda: state.list_tasks(),
    "placement_group": lambda: placement_group([{"CPU": 1}]),
    "ready": lambda: group.ready(),
    "wait of a group": lambda: group.wait(1),
}

async def awaited():
    return await small

def complain():
    for name, call in CALLS.items():
        try:
            call()
        except shoal.exceptions.NotInitializedError as error:
            text = str(error)
            assert f"shoal was started in process {os.getppid()}" in text, text
            assert "multiprocessing.get_context('spawn')" in text, text
        except BaseException as error:
            raise AssertionError(name) from error
        else:
            raise AssertionError(f"{name} did not fail")
    assert not shoal.is_initialized()
    # It says nothing, and ends nothing.
    shoal.shutdown()
    # What was read before stays readable.
    assert array.sum() == 300_000 * 299_999 // 2

def all_is_well():
    assert shoal.get(double.remote(small), timeout=30) == 14
    assert shoal.get(large, timeout=30)[-1] == 299_999
    assert shoal.is_initialized()

def is_a_program_of_its_own():
    with shoal.init(num_cpus=1):
        assert shoal.get(double.remote(shoal.put(np.ones(200_000))))[0] == 2
        for refused in (lambda: counter.add.remote(), lambda: next(stream)):
            try:
                refused()
            except shoal.exceptions.ShoalError:
                continue
            raise AssertionError("it was not refused")

def ends_well(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def run(folder: Path, program: str) -> str:
    script = textwrap.dedent(SETTING) + textwrap.dedent(program)
    return run_script(folder, script).stdout


def test_in_a_fork_every_call_fails_at_once_and_the_parent_goes_on(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                complain()
                if _:
                    is_a_program_of_its_own()
                # Of what is dropped, the parent hears nothing.
                del small, large, stream, counter, group, array, CALLS
                sys.exit(0)  # runs the exit handlers that it has inherited
            ends_well(pid)
            all_is_well()
            assert shoal.get(counter.add.remote(), timeout=30) == 2 + _
        assert [shoal.get(ref) for ref in stream] == [1, 2]
        print("done")
        """,
    )
    assert said == "done\n"


def test_forks_of_a_busy_process_disturb_nobody(tmp_path: Path) -> None:
    """Taken at any moment, with locks that other threads have."""
    said = run(
        tmp_path,
        """
        over, rounds = threading.Event(), []
        def work():
            mine = Counter.remote()
            count = 0
            while not over.is_set():
                assert shoal.get([double.remote(n) for n in range(50)]) == [2 * n for n in range(50)]
                array = np.full(100_000, count)
                assert shoal.get(double.remote(shoal.put(array)))[-1] == 2 * count
                count += 1
                assert shoal.get(mine.add.remote()) == count
                rounds.append(count)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                try:
                    complain()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                # Its threads are in the parent, so that a normal end does not wait for them.
                sys.exit(0)
            ends_well(pid)
            # Somebody has finished something since.
            before = len(rounds)
            while len(rounds) == before:
                assert any(thread.is_alive() for thread in threads)
                time.sleep(0.001)
        over.set()
        for thread in threads:
            thread.join()
        all_is_well()
        print("done")
        """,
    )
    assert said == "done\n"


def test_pools_of_forks_compute_and_shoal_goes_on(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        import multiprocessing
        context = multiprocessing.get_context("fork")

        def square(x):
            complain()
            return x * x

        @shoal.remote
        def in_a_task():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                squares = pool.map(abs, [-1, -2, -3])
            def tells(pipe):
                try:
                    shoal.put(1)
                except shoal.exceptions.NotInitializedError as error:
                    pipe.send(str(error))
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=tells, args=(there,))
            process.start()
            told = here.recv()
            process.join()
            return squares, f"was started in process {os.getpid()}" in told, shoal.get(double.remote(4))

        with context.Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
            all_is_well()
        assert shoal.get(in_a_task.remote(), timeout=60) == ([1, 2, 3], True, 8)
        all_is_well()
        print("done")
        """,
    )
    assert said == "done\n"


def test_a_fork_does_not_keep_the_session_of_a_parent_that_is_killed(tmp_path: Path) -> None:
    with Program(
        tmp_path,
        """
        import shoal
        say_session(shoal.init(num_cpus=1))
        @shoal.remote
        def f():
            return 1
        assert shoal.get(f.remote()) == 1
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
            os._exit(0)
        say(pid)
        time.sleep(1000)
        """,
    ) as program:
        session = program.session()
        child = int(program.line())
        try:
            program.kill()
            wait_until(lambda: not session.exist(), "the session ends", DEADLINE_S + GONE_S)
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


SPAWNS = """
import multiprocessing
import os
import sys
import shoal
from beside import square, with_shoal

def start(method):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        squares = pool.map(square, range(5))
    with context.Pool(1) as pool:
        return squares, pool.apply(with_shoal, (20,))

if __name__ == "__main__":
    shoal.init(num_cpus=2)
    in_a_task = shoal.remote(start)
    for method in ("spawn", "forkserver"):
        expected = ([0, 1, 4, 9, 16], 40)
        assert start(method) == expected
        assert shoal.get(in_a_task.remote(method), timeout=60) == expected
        assert shoal.get(shoal.put(1)) == 1
    print("done")
"""

BESIDE = """
import shoal

def square(x):
    return x * x

@shoal.remote
def double(x):
    return 2 * x

def with_shoal(x):
    # A new interpreter is a program of its own.
    with shoal.init(num_cpus=1):
        return shoal.get(double.remote(x), timeout=60)
"""


def test_new_interpreters_work_beside_a_driver_and_inside_a_task(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    assert run_script(tmp_path, SPAWNS).stdout == "done\n"
