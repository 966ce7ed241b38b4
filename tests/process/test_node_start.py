"""How heads and workers begin: what they find, what they inherit, and what is said when they cannot begin."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.config import load_config
from shoal.errors import InternalError
from shoal.messages.node import LeaseGranted
from shoal.runtime.launch import Session, launch_head
from shoal.runtime.machine import default_cpus, gpu_ids, node_total
from tests.process import node_sessions
from tests.process.fake_worker import tell
from tests.process.node_sessions import NodeSession, node_session, wait_for


def ask(lease: LeaseGranted, expression: str, tmp_path: Path) -> Any:
    """The value of an expression in a worker."""
    out = tmp_path / "answer"
    tell(lease.address, f"import json; open({str(out)!r}, 'w').write(json.dumps({expression}))")
    return json.loads(out.read_text())


def test_a_head_that_fails_says_why_and_leaves_nothing() -> None:
    session = Session()
    with pytest.raises(InternalError, match="no such thing") as caught:
        launch_head(session, load_config(), program="raise RuntimeError('no such thing')")
    assert "ended before it was ready (exit code 1)" in str(caught.value)
    assert not os.path.exists(session.directory)
    assert not os.path.exists(session.shm_dir)


def test_what_workers_run_must_be_importable() -> None:
    program = (
        "import sys; sys.path += sys.argv[1:]\n"
        "from shoal.node.head import main\n"
        "def load(): raise ImportError('no module named gear')\n"
        "main(load)"
    )
    session = Session()
    with pytest.raises(InternalError, match="could not start: ImportError: no module named gear"):
        launch_head(session, load_config(), program=program)
    wait_for(lambda: not os.path.exists(session.directory))


def test_a_head_that_hangs_is_not_waited_for_for_ever() -> None:
    session = Session()
    begin = time.monotonic()
    with pytest.raises(InternalError, match=r"did not answer within 0\.2 s"):
        launch_head(session, load_config(), program="import time; time.sleep(60)", timeout_s=0.2)
    assert time.monotonic() - begin < 5
    assert not os.path.exists(session.directory)


def test_an_interpreter_without_a_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(InternalError, match=r"sys\.executable is not set"):
        launch_head(Session(), load_config())


def test_a_worker_that_registers_before_its_node_knows_its_pid_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = (
        "import sys, time; sys.path += sys.argv[1:]\n"
        "from shoal.messages.zygote import Forked\n"
        "from shoal.node.head import main\n"
        "from shoal.node.zygote import Zygote\n"
        "from tests.process.fake_worker import load\n"
        "send = Zygote._send\n"
        "def late(self, message):\n"
        "    time.sleep(0.5 if isinstance(message, Forked) else 0)\n"
        "    send(self, message)\n"
        "Zygote._send = late\n"
        "main(load)"
    )
    monkeypatch.setattr(node_sessions, "PROGRAM", program)
    with node_session(num_cpus=1) as session:
        lease = session.lease(session.register())
        assert psutil.pid_exists(lease.pid)
        assert "is not the worker" not in session.head.log_tail()


def test_a_worker_inherits_no_descriptors(tmp_path: Path) -> None:
    with node_session(num_cpus=4) as session:
        driver = session.register()
        leases = [session.lease(driver) for _ in range(3)]
        for lease in leases:
            found = ask(
                lease,
                "{n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') "
                "if os.path.exists(f'/proc/self/fd/{n}')}",
                tmp_path,
            )
            others = {n: path for n, path in found.items() if int(n) > 2}
            assert found["0"] == "/dev/null"
            assert found["1"].startswith("pipe:")
            assert found["2"].startswith("pipe:")
            # Its own: the listening socket, the connections of node and test, the file of the answer.
            sockets = [path for path in others.values() if path.startswith("socket:")]
            files = [path for path in others.values() if path.startswith(str(tmp_path))]
            assert len(sockets) == 3, others
            assert len(others) == len(sockets) + len(files), others


def test_a_worker_looks_like_a_process_of_the_job(tmp_path: Path) -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        assert ask(lease, "os.getcwd()", tmp_path) == os.getcwd()
        assert ask(lease, "sys.path", tmp_path)[: len(sys.path)] == sys.path
        assert ask(lease, "sorted(vars(sys.modules['__main__']))", tmp_path) == [
            "__doc__",
            "__loader__",
            "__name__",
            "__package__",
            "__spec__",
        ]
        assert ask(lease, "[os.getpgid(0) == os.getpid(), os.getsid(0)]", tmp_path) == [
            True,
            session.head.pid,
        ]
        code = "__import__('signal').getsignal(2) is __import__('signal').default_int_handler"
        assert ask(lease, code, tmp_path)


def test_numeric_libraries_get_one_thread_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with node_session() as session:
        lease = session.lease(session.register())
        assert ask(lease, "os.environ['OMP_NUM_THREADS']", tmp_path) == "1"
        assert ask(lease, "os.environ['MKL_NUM_THREADS']", tmp_path) == "3"


def test_preloaded_modules_are_there_and_failures_are_only_logged(tmp_path: Path) -> None:
    (tmp_path / "gear.py").write_text("import os\nwho = os.getpid()\n")
    (tmp_path / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    )
    (tmp_path / "broken.py").write_text("raise ValueError('broken on purpose')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with node_session() as session:
            driver = session.driver
            modules = ["broken", "gear", "busy", "no_such_module"]
            driver.register_driver(session.job(), preload=modules)
            wait_for(lambda: "no_such_module" in session.head_log())
            lease = session.lease(driver)
            assert ask(lease, "sys.modules['gear'].who", tmp_path) == session.pid_of("shoal:zygote")
            assert "broken on purpose" in session.head_log()
            assert "importing busy starts threads" in session.head_log()
            assert "importing gear" not in session.head_log()
    finally:
        sys.path.remove(str(tmp_path))


def test_preloaded_numpy_draws_other_numbers_in_every_worker(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    with node_session(preload=["numpy.random"]) as session:
        driver = session.register()
        # Whichever way it got there, each worker has a state of its own.
        draw = "__import__('numpy').random.random()"
        leases = [session.lease(driver) for _ in range(2)]
        assert len({ask(lease, draw, tmp_path) for lease in leases}) == 2


def test_a_child_of_the_driver_does_not_end_its_session() -> None:
    with node_session() as session:
        pid = os.fork()
        if pid == 0:
            session.head.stop()
            os._exit(0)
        os.waitpid(pid, 0)
        assert session.head.is_alive()
        session.register()


def test_stopping_again_does_nothing() -> None:
    session = NodeSession()
    session.close()
    session.head.stop()
    assert not session.head.is_alive()
    assert session.head.log_tail() == ""


def test_daemons_are_small_and_do_not_load_numpy() -> None:
    with node_session(prestart=2) as session:
        session.register()
        wait_for(lambda: len(session.processes().get("shoal:worker", ())) == 2)
        for kind in ("shoal:head", "shoal:zygote"):
            process = psutil.Process(session.pid_of(kind))
            assert process.memory_full_info().uss < 25 << 20, kind
            assert not any("numpy" in m.path for m in process.memory_maps())


def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f1, -1, 3")
    assert gpu_ids(None) == ["2", "GPU-8f1"]
    assert gpu_ids(1) == ["2"]
    assert gpu_ids(3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_ids(None) == []
    assert gpu_ids(0.5) == ["0"]


def test_the_resources_of_a_node_are_found_out_or_given() -> None:
    total = node_total(None, 0, None, 1 << 20, "127.0.0.1", {"slot": 0.5})
    assert total["CPU"] == round(default_cpus() * 10_000) > 0
    assert "GPU" not in total
    assert total["memory"] > 0
    assert total["slot"] == 5_000
    assert total["node:127.0.0.1"] == 10_000
    assert node_total(0, 0, 1, 1, "h", None)["CPU"] == 0
    with pytest.raises(ValueError, match="less than nothing"):
        node_total(-1, 0, 1, 1, "h", None)
    with pytest.raises(ValueError, match="say num_cpus=… instead"):
        node_total(1, 0, 1, 1, "h", {"CPU": 1})
