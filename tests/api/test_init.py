"""`init` and `shutdown`: options, auto-init, again and again, from threads, event loops and scripts."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorHandleNotFoundError
from tests.api.gates import Gate
from tests.api.scripts import run_script, script_environment, write_script


@shoal.remote
def square(x: int) -> int:
    return x * x


def four() -> int:
    return shoal.get(square.remote(2), timeout=30)


# --- once ----------------------------------------------------------------------------------------------------------------


def test_before_between_and_after() -> None:
    assert not shoal.is_initialized()
    shoal.init(num_cpus=1)
    assert shoal.is_initialized()
    assert four() == 4
    shoal.shutdown()
    assert not shoal.is_initialized()


def test_init_tells_where_the_session_is(tmp_path: Path) -> None:
    context = shoal.init(num_cpus=1)
    assert Path(context.address_info["session_dir"]).is_dir()
    assert context.address_info["address"]
    assert context.address_info["node_id"] == shoal.get_runtime_context().get_node_id()
    assert context.python_version == ".".join(map(str, sys.version_info[:3]))


def test_the_context_ends_the_session() -> None:
    with shoal.init(num_cpus=1):
        assert four() == 4
    assert not shoal.is_initialized()
    shoal.init(num_cpus=1).disconnect()
    assert not shoal.is_initialized()


def test_shutdown_may_be_called_when_nothing_runs() -> None:
    shoal.shutdown()
    shoal.init(num_cpus=1)
    shoal.shutdown()
    shoal.shutdown()
    assert not shoal.is_initialized()


def test_a_local_session_by_name() -> None:
    shoal.init(address="local", num_cpus=1)
    assert four() == 4


def test_auto_finds_no_cluster_that_nobody_started() -> None:
    with pytest.raises(ConnectionError):
        shoal.init(address="auto")
    assert not shoal.is_initialized()


def test_files_go_where_they_were_told() -> None:
    # Not in tmp_path, whose name is too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="shoal-t", dir="/tmp") as folder:
        with shoal.init(num_cpus=1, _temp_dir=folder) as context:
            assert Path(context.address_info["session_dir"]).is_relative_to(folder)
            assert four() == 4
        assert list(Path(folder).iterdir()) == []


# --- twice ---------------------------------------------------------------------------------------------------------------


def test_a_second_init_is_refused_unless_it_may_be() -> None:
    first = shoal.init(num_cpus=1)
    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        shoal.init(num_cpus=1)
    again = shoal.init(num_cpus=1, ignore_reinit_error=True)
    assert again.address_info["session_dir"] == first.address_info["session_dir"]
    assert four() == 4


def test_twenty_rounds_with_the_same_function() -> None:
    """Nothing is left of them: the leak check that surrounds every test looks for it."""
    for i in range(20):
        shoal.init(num_cpus=1)
        assert shoal.get(square.remote(i), timeout=30) == i * i
        shoal.shutdown()


def test_nothing_of_one_session_reaches_the_next() -> None:
    shoal.init(num_cpus=1)
    counter = shoal.remote(Counter).options(name="counter").remote()
    assert shoal.get(counter.count.remote(), timeout=30) == 1
    shoal.shutdown()
    shoal.init(num_cpus=1)
    with pytest.raises(ValueError, match="counter"):
        shoal.get_actor("counter")
    with pytest.raises(ActorHandleNotFoundError):
        shoal.kill(counter)
    with pytest.raises(shoal.ShoalError) as caught:
        shoal.get(counter.count.remote(), timeout=10)
    assert not isinstance(caught.value, TimeoutError)
    assert four() == 4


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def count(self) -> int:
        self.total += 1
        return self.total


# --- options -------------------------------------------------------------------------------------------------------------


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="no_such_option"):
        shoal.init(num_cpus=1, no_such_option=1)
    assert not shoal.is_initialized()


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": -1}, {"num_gpus": -1}, {"resources": {"CPU": 1}}, {"object_store_memory": -5}],
    ids=lambda options: next(iter(options)),
)
def test_amounts_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, AssertionError)):
        shoal.init(**options)
    assert not shoal.is_initialized()


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no_such_setting"):
        shoal.init(num_cpus=1, _system_config={"no_such_setting": 1})
    assert not shoal.is_initialized()


def test_options_without_effect_here_are_taken() -> None:
    """Programs pass them, and run on one machine as well."""
    shoal.init(
        num_cpus=1,
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        dashboard_port=8265,
        configure_logging=True,
        logging_level=logging.WARNING,
        logging_format="%(message)s",
        log_to_driver=False,
    )
    assert four() == 4


def test_the_amounts_that_were_given() -> None:
    shoal.init(num_cpus=3, num_gpus=1, resources={"licence": 2}, object_store_memory=200_000_000)
    total = shoal.cluster_resources()
    assert (total["CPU"], total["GPU"], total["licence"]) == (3, 1, 2)
    assert total["object_store_memory"] == 200_000_000


# --- without init ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first_use",
    [
        lambda: square.remote(1),
        lambda: shoal.put(1),
        lambda: shoal.get_runtime_context().get_job_id(),
        lambda: shoal.wait([shoal.put(1)], timeout=10),
        lambda: shoal.remote(Counter).remote(),
    ],
    ids=["task", "put", "context", "wait", "actor"],
)
def test_the_first_use_starts_a_session(first_use: Callable[[], Any]) -> None:
    assert not shoal.is_initialized()
    kept = first_use()
    assert shoal.is_initialized()
    assert four() == 4
    del kept


def test_the_first_use_need_not_start_a_session(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal

        try:
            shoal.put(1)
        except Exception as error:
            print(error)
        print(shoal.is_initialized())
        """,
        variables={"SHOAL_ENABLE_AUTO_CONNECT": "0"},
    )
    error, is_initialized = result.stdout.splitlines()
    assert "init" in error
    assert is_initialized == "False"


# --- threads and event loops ---------------------------------------------------------------------------------------------


def test_init_in_a_thread_serves_all_threads() -> None:
    thread = threading.Thread(target=shoal.init, kwargs={"num_cpus": 2})
    thread.start()
    thread.join(60)
    assert four() == 4
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda i: shoal.get(square.remote(i), timeout=30), range(40))
        assert list(results) == [i * i for i in range(40)]


def test_shutdown_in_another_thread() -> None:
    shoal.init(num_cpus=1)
    thread = threading.Thread(target=shoal.shutdown)
    thread.start()
    thread.join(60)
    assert not shoal.is_initialized()


def test_threads_that_start_together_share_one_session() -> None:
    with ThreadPoolExecutor(4) as pool:
        contexts = list(
            pool.map(lambda _: shoal.init(num_cpus=1, ignore_reinit_error=True), range(4))
        )
    assert len({context.address_info["session_dir"] for context in contexts}) == 1


def test_inside_a_running_event_loop() -> None:
    """As in a notebook, where every cell runs in one."""

    async def cell() -> tuple[int, int]:
        shoal.init(num_cpus=1)
        return four(), await square.remote(3)

    async def next_cell() -> int:
        value = four()
        shoal.shutdown()
        return value

    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(cell()) == (4, 9)
        assert loop.run_until_complete(next_cell()) == 4
    finally:
        loop.close()


# --- scripts ---------------------------------------------------------------------------------------------------------------


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal
        print("top level")
        shoal.init(num_cpus=2)

        @shoal.remote
        def square(x):
            return x * x

        print(shoal.get([square.remote(i) for i in range(4)], timeout=30))
        """,
    )
    assert result.stdout.splitlines() == ["top level", "[0, 1, 4, 9]"]


def test_a_program_without_a_file(tmp_path: Path) -> None:
    source = """
import shoal

OFFSET = 10

class Adder:
    def add(self, x):
        return x + OFFSET

adder = shoal.remote(Adder).remote()
print(shoal.get([adder.add.remote(1), shoal.remote(lambda x: x + OFFSET).remote(2)], timeout=30))
"""
    for arguments, stdin in ((["-c", source], None), (["-"], source)):
        result = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            cwd=tmp_path,
            env=script_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert result.stdout.splitlines() == ["[11, 12]"]


def test_the_exit_code_of_a_script_is_its_own(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import sys
        import shoal
        shoal.init(num_cpus=1)
        print(shoal.get(shoal.remote(lambda: 1).remote(), timeout=30))
        sys.exit(7)
        """,
        exit_code=7,
    )
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_work_that_nobody_waits_for_does_not_hold_up_the_end(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import time
        import shoal
        shoal.init(num_cpus=1)
        refs = [shoal.remote(lambda: time.sleep(600)).remote() for _ in range(3)]
        print("the end")
        """,
        seconds=30,
    )
    assert (result.stdout, result.stderr) == ("the end\n", "")


def test_ctrl_c_ends_a_script_that_waits(tmp_path: Path, gates: Callable[[str], Gate]) -> None:
    waiting = gates("waiting")
    script = write_script(
        tmp_path,
        f"""
        import time
        import shoal
        from pathlib import Path
        shoal.init(num_cpus=1)

        @shoal.remote
        def sleep():
            Path({str(waiting._path)!r}).touch()
            time.sleep(600)

        shoal.get(sleep.remote())
        """,
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=script_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        waiting.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert "KeyboardInterrupt" in said
    assert process.returncode in {-signal.SIGINT, 128 + signal.SIGINT, 1}
