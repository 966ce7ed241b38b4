"""Whatever is killed, and however many at once: within seconds nothing of the session is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from shoal.messages.node import Exit, PeerGone, Watch
from shoal.runtime.session_folder import session_root, sweep_dead_sessions
from tests.process.fake_worker import tell
from tests.process.node_client import NodeClient
from tests.process.node_sessions import NodeSession, node_session, wait_for

LIMIT_S = 5.0

# A driver of its own process: says where its session is, and then waits to be killed.
DRIVER = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from tests.process.node_sessions import NodeSession
session = NodeSession(prestart=2)
driver = session.register()
session.lease(driver)
if "fork" in sys.argv and os.fork() == 0:
    # A child that holds the lifeline must not keep the session alive.
    time.sleep(30)
    os._exit(0)
print(session.session.directory, session.session.shm_dir, session.head.pid, flush=True)
time.sleep(60)
"""


class Driver:
    """A driver in another process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.directory, self.shm_dir, head = self.process.stdout.readline().split()
        self.head = psutil.Process(int(head))
        self.all = [self.head, *self.head.children(recursive=True)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def is_gone(self) -> bool:
        files = os.path.exists(self.directory) or os.path.exists(self.shm_dir)
        return not files and not any(is_alive(process) for process in self.all)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def other_driver(*arguments: str) -> Iterator[Driver]:
    driver = Driver(*arguments)
    try:
        yield driver
    finally:
        driver.kill()
        assert driver.process.stdout is not None
        driver.process.stdout.close()


def kill_at_once(pids: list[int]) -> None:
    """Kill processes, of which parents come before their children.

    They are stopped first, so that none can clean up after another; and the children die first, so that those who follow them
    into death do not before they are killed, and none is reaped whose turn is to come.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)


def running_session() -> NodeSession:
    session = NodeSession(prestart=2)
    driver = session.register()
    lease = session.lease(driver)
    # What user code starts must go as well.
    tell(lease.address, "import subprocess; child = subprocess.Popen(['sleep', '1000'])")
    wait_for(lambda: len(session.processes().get("shoal:worker", ())) == 2)
    return session


def everybody(session: NodeSession) -> list[psutil.Process]:
    return [process for kind in session.processes().values() for process in kind]


def test_the_driver_is_killed() -> None:
    with other_driver() as driver:
        driver.kill()
        wait_for(driver.is_gone, LIMIT_S)


def test_the_driver_is_killed_and_a_child_of_it_lives_on() -> None:
    with other_driver("fork") as driver:
        children = psutil.Process(driver.process.pid).children()
        (child,) = [c for c in children if c.pid != driver.head.pid]
        driver.kill()
        wait_for(driver.is_gone, LIMIT_S)
        assert is_alive(child)
        child.kill()


def test_the_driver_ends_its_standard_input() -> None:
    session = running_session()
    processes = everybody(session)
    session.head._process.stdin.close()  # type: ignore[union-attr]  # it was made with a pipe
    wait_for(lambda: not any(map(is_alive, processes)), LIMIT_S)
    assert session.is_gone()
    session.close()


def test_the_head_is_killed() -> None:
    session = running_session()
    processes = everybody(session)
    session.kill_head()
    wait_for(lambda: not any(map(is_alive, processes)), LIMIT_S)
    wait_for(session.is_gone, LIMIT_S)
    session.close()


def test_the_head_is_told_to_end() -> None:
    session = running_session()
    processes = everybody(session)
    os.kill(session.head.pid, signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, processes)), LIMIT_S)
    assert session.is_gone()
    session.close()


def test_the_zygote_is_killed() -> None:
    session = running_session()
    processes = everybody(session)
    os.kill(session.pid_of("shoal:zygote"), signal.SIGKILL)
    notice = session.driver.expect(Exit)
    assert "zygote" in notice.reason
    assert "shoal.init()" in notice.reason
    wait_for(lambda: not any(map(is_alive, processes)), LIMIT_S)
    wait_for(session.is_gone, LIMIT_S)
    session.close()


def test_a_worker_is_killed() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        driver.send(Watch(lease.address))
        os.kill(lease.pid, signal.SIGKILL)
        assert driver.expect(PeerGone).cause == "was killed by SIGKILL"
        session.lease(driver)


def test_head_and_zygote_are_killed_at_once() -> None:
    session = running_session()
    everything = psutil.Process(session.head.pid).children(recursive=True)
    workers = session.processes()["shoal:worker"]
    kill_at_once([session.pid_of("shoal:head"), session.pid_of("shoal:zygote")])
    wait_for(lambda: not any(map(is_alive, workers)), LIMIT_S)
    # Nobody was left to kill what user code had started, and to remove the files: the driver does, as it stops.
    assert [process.name() for process in everything if is_alive(process)] == ["sleep"]
    session.close()
    assert session.is_gone()
    wait_for(lambda: not any(map(is_alive, everything)))


def test_all_are_killed_at_once_and_the_next_start_sweeps() -> None:
    with other_driver() as driver:
        kill_at_once([driver.process.pid, *(process.pid for process in driver.all)])
        driver.process.wait()
        wait_for(lambda: not any(map(is_alive, driver.all)), LIMIT_S)
        assert os.path.exists(driver.directory)
        with node_session():
            assert driver.is_gone()


def test_a_living_session_is_not_swept() -> None:
    with node_session() as session:
        assert sweep_dead_sessions(session_root()) == 0
        session.register()


def test_the_driver_is_killed_while_the_head_starts() -> None:
    for delay_s in (0.0, 0.03, 0.06, 0.1):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdout=subprocess.DEVNULL, text=True
        )
        time.sleep(0.1 + delay_s)
        driver.kill()
        driver.wait()
    root = session_root()
    # Some died before there was a head to clean up.
    wait_for(lambda: sweep_dead_sessions(root) == 0 and not os.listdir(root), LIMIT_S)


def test_many_connections_do_not_outlive_their_clients() -> None:
    with node_session() as session:
        clients: list[NodeClient] = [session.connect(f"d-e{n:07x}") for n in range(50)]
        head = psutil.Process(session.head.pid)
        before = head.num_fds()
        for client in clients:
            client.close()
        wait_for(lambda: head.num_fds() <= before - 50)
