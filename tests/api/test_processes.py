"""What a worker is to the code that runs in it: an ordinary process, like the driver's but for its own chance numbers."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from tests.api.gates import Gate
from tests.api.scripts import run_script

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


@shoal.remote
def double(x: int) -> int:
    return 2 * x


# --- inside of a task ------------------------------------------------------------------------------------------------------


def test_tasks_and_actors_run_in_main_threads() -> None:
    """Where signal handlers may be set, and libraries expect to be."""

    @shoal.remote
    def is_main() -> bool:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        return threading.current_thread() is threading.main_thread()

    @shoal.remote
    class Actor:
        def is_main(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    assert get([is_main.remote(), Actor.remote().is_main.remote()]) == [True, True]


def test_each_process_draws_numbers_of_its_own(gates: Callable[[str], Gate]) -> None:
    """Workers that are copies of one process must not all roll the same dice."""

    @shoal.remote
    def draw(own: Gate, all_gates: list[Gate]) -> tuple[int, float, float]:
        own.open()
        for gate in all_gates:  # each in a process of its own
            gate.wait()
        return os.getpid(), random.random(), float(np.random.rand())

    made = [gates(f"draw{i}") for i in range(2)]
    pids, ours, numpys = zip(*get([draw.remote(gate, made) for gate in made]), strict=True)
    assert len(set(pids)) == len(set(ours)) == len(set(numpys)) == 2


def test_actors_draw_numbers_of_their_own() -> None:
    @shoal.remote
    class Player:
        def draw(self) -> tuple[float, float]:
            return random.random(), float(np.random.rand())

    players = [Player.remote() for _ in range(4)]
    ours, numpys = zip(*get([player.draw.remote() for player in players]), strict=True)
    assert len(set(ours)) == len(set(numpys)) == 4


def test_programs_and_processes_can_be_started() -> None:
    @shoal.remote
    def start() -> tuple[int, str, int | None]:
        code = subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False).returncode
        said = subprocess.check_output(["echo", "hello"], text=True)
        process = multiprocessing.get_context("fork").Process(target=os._exit, args=(5,))
        process.start()
        process.join(20)
        return code, said, process.exitcode

    assert get(start.remote()) == (3, "hello\n", 5)


def test_threads_of_a_task_use_shoal() -> None:
    @shoal.remote
    def fan_out(n: int) -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda i: shoal.get(double.remote(i), timeout=30), range(n)))

    assert get(fan_out.remote(20)) == [2 * i for i in range(20)]


def test_shoal_runs_in_workers_already() -> None:
    @shoal.remote
    def ask() -> tuple[bool, str]:
        try:
            shoal.init(num_cpus=1)
        except RuntimeError:
            return shoal.is_initialized(), "refused"
        return shoal.is_initialized(), "done"

    assert get(ask.remote()) == (True, "refused")


def test_the_working_directory_is_the_drivers() -> None:
    @shoal.remote
    def where() -> str:
        return os.getcwd()

    assert get(where.remote()) == os.getcwd()


def test_modules_and_variables_of_a_program_are_there_for_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(
        textwrap.dedent(
            """
            class Shape:
                def __init__(self, sides):
                    self.sides = sides

            def sides(shape):
                return shape.sides
            """
        )
    )
    result = run_script(
        tmp_path,
        """
        import os, sys
        import beside
        import shoal

        os.environ["SET_BEFORE"] = "before"
        shoal.init(num_cpus=1)

        @shoal.remote
        def count(shape):
            return beside.sides(shape), type(shape) is beside.Shape, os.environ["SET_BEFORE"]

        print(*shoal.get(count.remote(beside.Shape(4)), timeout=30))
        print(*shoal.get(shoal.remote(beside.sides).remote(beside.Shape(5)), timeout=30) * [1])
        """,
    )
    assert result.stdout.split() == ["4", "True", "before", "1", "1", "1", "1", "1"]


def test_there_is_nothing_to_read_on_standard_input(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import sys
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def read():
            try:
                return input()
            except EOFError:
                return "nothing"

        print(shoal.get(read.remote(), timeout=30))
        """,
    )
    assert result.stdout == "nothing\n"


# --- beside the driver -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_forked_child_does_not_end_the_session(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os, sys
        import shoal
        shoal.init(num_cpus=1)
        f = shoal.remote(lambda: 42)
        print(shoal.get(f.remote(), timeout=30), flush=True)

        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # runs the exit handlers that the child has inherited
        os.waitpid(pid, 0)
        print(shoal.get(f.remote(), timeout=30))
        """,
    )
    assert result.stdout.split() == ["42", "42"]


def test_programs_side_by_side_do_not_meet(tmp_path: Path) -> None:
    source = """
        import sys
        import shoal
        shoal.init(num_cpus=1, namespace="the same")

        @shoal.remote
        class Owner:
            def whose(self):
                return {name!r}

        owner = Owner.options(name="the same").remote()
        print(shoal.get(owner.whose.remote(), timeout=30))
        print(shoal.get(shoal.get_actor("the same").whose.remote(), timeout=30))
    """
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(
            lambda folder: run_script(folder, source.format(name=folder.name)), folders
        )
    said = [result.stdout.split() for result in results]
    assert said == [["first", "first"], ["second", "second"]]
