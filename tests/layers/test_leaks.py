"""The leak check catches each kind of leak, waits for what is on its way out, and leaves other runs alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from shoal.runtime.session_folder import Session
from shoal.wire.session import folder_name
from tests.leaks import (
    SHARED_MEMORY,
    Leak,
    Snapshot,
    leaks_since,
    report,
    take_snapshot,
    wait_until_clean,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A session root of this test's own, so that only what the test makes is found by it."""
    folder = tmp_path / "sessions"
    folder.mkdir()
    return folder


@pytest.fixture
def before(root: Path) -> Snapshot:
    return take_snapshot(root)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def the_leak(before: Snapshot, kind: str, seconds: float = 0.05) -> Leak:
    """The one leak there is."""
    found = wait_until_clean(before, seconds)
    assert [leak.kind for leak in found] == [kind], report(found)
    return found[0]


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(timeout=10)


def test_nothing_new_is_no_leak(before: Snapshot) -> None:
    assert wait_until_clean(before, 0) == []


def test_a_child_process_is_caught(before: Snapshot, cleanup: ExitStack) -> None:
    child = subprocess.Popen(SLEEP)
    cleanup.callback(stop, child)
    leak = the_leak(before, "process")
    assert f"pid {child.pid} " in leak.what
    assert "time.sleep(60)" in leak.what
    stop(child)
    assert wait_until_clean(before) == []


def test_a_zombie_is_caught(before: Snapshot, cleanup: ExitStack) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    cleanup.callback(child.wait)
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    assert psutil.STATUS_ZOMBIE in the_leak(before, "process").what


def orphan(environment: dict[str, str]) -> psutil.Process:
    """A process whose parent has ended, as a daemon's has."""
    code = (
        "import subprocess\n"
        f"daemon = subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(daemon.pid)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    daemon = psutil.Process(int(shown.stdout))
    # Whoever started it may have gone on while the kernel had not yet put its environment where others can read it.
    while not Path(f"/proc/{daemon.pid}/environ").read_bytes():
        time.sleep(0.001)
    return daemon


def test_a_daemon_that_left_the_family_is_caught(
    root: Path, before: Snapshot, cleanup: ExitStack
) -> None:
    daemon = orphan({"SHOAL_TMPDIR": str(root)})
    cleanup.callback(daemon.kill)
    assert f"pid {daemon.pid} " in the_leak(before, "process").what


def test_a_daemon_of_another_run_is_left_alone(
    tmp_path: Path, before: Snapshot, cleanup: ExitStack
) -> None:
    cleanup.callback(orphan({"SHOAL_TMPDIR": str(tmp_path / "elsewhere")}).kill)
    assert leaks_since(before) == []


def test_a_thread_is_caught_with_the_place_where_it_waits(before: Snapshot) -> None:
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait, name="left-behind", daemon=True)
    thread.start()
    leak = the_leak(before, "thread")
    assert "'left-behind'" in leak.what
    assert "threading.py:" in leak.what
    may_end.set()
    assert wait_until_clean(before) == []


def test_a_descriptor_is_caught_with_its_target(tmp_path: Path, before: Snapshot) -> None:
    path = tmp_path / "open-file"
    with path.open("w") as file:
        assert the_leak(before, "descriptor").what == f"fd {file.fileno()} -> {path}"
    assert wait_until_clean(before) == []


def test_a_socket_is_caught_with_its_path(tmp_path: Path, before: Snapshot) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        leak = the_leak(before, "descriptor")
        assert leak.what.startswith(f"fd {listener.fileno()} -> socket:[")
        assert leak.what.endswith(str(path))


def test_a_descriptor_that_took_the_number_of_another_is_caught(tmp_path: Path, root: Path) -> None:
    first = os.open(tmp_path, os.O_RDONLY)
    before = take_snapshot(root, ["descriptor"])
    second = os.open(root, os.O_RDONLY)
    os.dup2(second, first)
    os.close(second)
    try:
        assert the_leak(before, "descriptor").what == f"fd {first} -> {root}"
    finally:
        os.close(first)


def test_a_descriptor_on_a_reference_cycle_is_no_leak(tmp_path: Path, before: Snapshot) -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.socket = socket.socketpair()

        def __del__(self) -> None:
            for end in self.socket:
                end.close()

    Holder()
    assert wait_until_clean(before, 0) == []


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
def test_shared_memory_is_caught(root: Path, before: Snapshot, cleanup: ExitStack) -> None:
    path = SHARED_MEMORY / folder_name(f"{root}/s-{os.getpid():08x}")
    path.mkdir()
    cleanup.callback(path.rmdir)
    assert the_leak(before, "shared memory").what == str(path)


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
def test_what_a_session_of_this_run_has_there_is_caught(root: Path, before: Snapshot) -> None:
    session = Session(str(root))
    try:
        found = {leak.kind: leak.what for leak in leaks_since(before)}
        assert found.keys() == {"shared memory", "session folder", "descriptor"}
        assert found["shared memory"] == session.shm_dir
    finally:
        session.remove()
    assert leaks_since(before) == []


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
def test_shared_memory_of_another_run_is_left_alone(
    tmp_path: Path, before: Snapshot, cleanup: ExitStack
) -> None:
    """Also if nobody uses it: it may be what a test of that run is about."""
    path = SHARED_MEMORY / folder_name(f"{tmp_path}/elsewhere/s-{os.getpid():08x}")
    path.mkdir()
    cleanup.callback(path.rmdir)
    assert leaks_since(before) == []


def test_a_session_folder_is_caught(root: Path, before: Snapshot) -> None:
    (root / "session-1").mkdir()
    assert the_leak(before, "session folder").what == str(root / "session-1")


def test_it_waits_for_what_is_on_its_way_out(before: Snapshot) -> None:
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait)
    thread.start()
    threading.Timer(0.1, may_end.set).start()
    started = time.monotonic()
    assert wait_until_clean(before) == []
    assert time.monotonic() - started < 4, "it waited on although everything was gone"


def test_kinds_can_be_left_out(root: Path, before: Snapshot) -> None:
    (root / "session-1").mkdir()
    assert wait_until_clean(before, 0, kinds=["process", "thread"]) == []


def test_the_report_lists_everything() -> None:
    text = report([Leak("process", "pid 7: sleep"), Leak("thread", "'reactor'")])
    assert text == "2 left over 5 s after the test:\n  process: pid 7: sleep\n  thread: 'reactor'"
