"""Sessions with fake workers, for the tests of the node daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psutil

from shoal.config import load_config
from shoal.messages.node import Job, LeaseGranted, LeaseRequest, Shape
from shoal.runtime.launch import Head, launch_head
from shoal.runtime.session_folder import Session
from shoal.wire.addresses import LOCAL, make_address
from tests.process.fake_worker import PROGRAM
from tests.process.node_client import NodeClient

UNIT = 10_000
ONE_CPU = Shape((("CPU", UNIT),))
JOB = Job(b"j" * 16, "default", list(sys.path), os.getcwd())


def wait_for(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return value


class NodeSession:
    """A head with fake workers, and the client of a driver."""

    def __init__(self, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        self.session = Session()
        options = {"num_cpus": 2, "object_store_memory": 64 << 20, "prestart": 0} | options
        self.head: Head = launch_head(
            self.session, load_config(settings), job=JOB, program=PROGRAM, **options
        )
        self.driver = self.connect("d-d0000001")

    def connect(self, name: str) -> NodeClient:
        """A client that has not registered."""
        return NodeClient(self.head.path, self.session.token, make_address(LOCAL, name))

    def job(self) -> Job:
        """The driver's job, with the module path as it is now."""
        return msgspec.structs.replace(JOB, sys_path=list(sys.path))

    def register(self, **options: Any) -> NodeClient:
        """The driver's client, registered."""
        self.driver.register_driver(JOB, **options)
        return self.driver

    def lease(self, client: NodeClient, shape: Shape = ONE_CPU) -> LeaseGranted:
        """Ask for a lease and wait for it."""
        req = client.next_req()
        client.send(LeaseRequest(req, shape))
        return client.expect(LeaseGranted, lambda m: m.req == req)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The session's processes that live, by kind."""
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        try:
            head = psutil.Process(self.head.pid)
            everything = [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return found
        for process in everything:
            # One that ends just now is none.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.name()].append(process)
        return found

    def pid_of(self, kind: str) -> int:
        """The pid of the head ("shoal:head") or the zygote."""
        (process,) = self.processes()[kind]
        return int(process.pid)

    def head_log(self) -> str:
        """What the head has logged."""
        return self.head.log_tail()

    def kill_head(self) -> None:
        os.kill(self.head.pid, signal.SIGKILL)

    def is_gone(self) -> bool:
        """Whether the session's files are gone."""
        return not os.path.exists(self.session.directory) and not os.path.exists(
            self.session.shm_dir
        )

    def close(self) -> None:
        self.driver.close()
        self.head.stop()


@contextmanager
def node_session(**options: Any) -> Iterator[NodeSession]:
    session = NodeSession(**options)
    try:
        yield session
    finally:
        session.close()
