"""Starting a node: its session's folder, its token, and the head process.

The starter makes the session's folder and keeps its lock until the head has it too; it writes the boot record to the
head's standard input and keeps that pipe as a lifeline: should the starter die in any way, the head notices and ends. A node of a
cluster may also be left to itself (`Door.lifeline`).

Guarantees: `launch_head` returns a head that serves, or raises with what the head itself said, and then leaves nothing
behind; `Head.stop` is bounded, may be called again, and leaves no process and no file. Sessions that died without cleaning
up (all of their processes were killed at once) are removed by the next start of the same user.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.config import Config
from shoal.messages.boot import Boot, Ready
from shoal.messages.node import Job
from shoal.runtime.machine import gpu_ids, node_total
from shoal.runtime.programs import Program
from shoal.runtime.session_folder import SESSION_VARIABLE, Session, sweep_dead_sessions
from shoal.store import default_capacity_bytes, is_in_memory
from shoal.wire.session import head_log, node_path

__all__ = ["HEAD_PROGRAM", "Door", "Head", "Session", "begin_head", "launch_head"]

_log = logging.getLogger("shoal")

START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 8.0
_PRESTART: Final = 2

# Where to find the packages comes as arguments: the driver may have them from a path that the head would not search. `-P`
# keeps the working directory out of the search, or a user's `logging.py` would end up in the daemon. What is imported stays, so
# there is nothing to collect until the head serves.
PROGRAM: Final = (
    "import gc, sys; gc.disable(); sys.path += [p for p in sys.argv[1:] if p not in sys.path]; "
    "from {module} import main; main()"
)
HEAD_PROGRAM: Final = PROGRAM.format(module="shoal.node.head")


@dataclass(frozen=True)
class Door:
    """How a node is part of a cluster.

    Attributes:
        control: Host and port of the control store.
        host: IP address of the node's door.
        port: Its port; 0 for any that is free.
        cluster_name: For those who look for the cluster.
        is_head: Whether it is started together with the control store.
        lifeline: Whether the node ends with its starter.
    """

    control: str
    host: str
    port: int = 0
    cluster_name: str = ""
    is_head: bool = False
    lifeline: bool = False


class Head:
    """The head process of a session that this process started, or the daemon of a node.

    Attributes:
        session: Its folder and token.
        path: Where its node daemon listens.
        pid: Its process.
    """

    def __init__(self, session: Session, program: Program) -> None:
        self.session = session
        self.path = node_path(session.directory)
        self.pid = program.pid
        self._program = program
        self._process = program.process
        self._owner_pid = os.getpid()
        self._stopping = threading.Lock()
        self._stopped = False

    def is_alive(self) -> bool:
        """Whether the head runs."""
        return not self._stopped and self._program.is_alive()

    def log_tail(self) -> str:
        """The last lines that the head wrote, even if its log file is gone."""
        return "" if self._stopped else self._program.log_tail()

    def await_ready(
        self,
        timeout_s: float = START_TIMEOUT_S,
        interrupted: Callable[[], None] | None = None,
    ) -> Ready:
        """Wait until it serves; if it does not, leave nothing of it behind.

        Raises:
            StartError: the head did not start; the text has what it said.
        """
        try:
            ready = _await_ready(self._program, timeout_s, interrupted)
        except BaseException:
            self.stop(timeout_s=1.0)
            raise
        self.session.unlock()
        return ready

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the session's processes and remove its files. In a child forked by user code it does nothing: the session
        is the parent's."""
        if os.getpid() != self._owner_pid:
            return
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            self._program.end(timeout_s)
            self.session.remove()

    def hang_up(self) -> None:
        """Tell it to end, without waiting; `stop` does."""
        self._program.hang_up()

    def leave(self) -> None:
        """Let it go on without this process (it was told no starter)."""
        self._program.leave()


def begin_head(
    session: Session,
    config: Config,
    *,
    job: Job | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | None = None,
    node_name: str = "",
    node_ip: str = "127.0.0.1",
    preload: list[str] | None = None,
    prestart: int = _PRESTART,
    program: str = HEAD_PROGRAM,
    door: Door | None = None,
) -> Head:
    """Start the head of a session; `Head.await_ready` waits until it serves.

    What is None is found out: CPUs from the affinity and control group of this process, GPUs from
    `CUDA_VISIBLE_DEVICES` or the devices there are, memory from the machine or its control group.

    Args:
        session: Fresh; removed if the start fails.
        config: For all processes of the session.
        job: The driver's: the first workers are forked for it before the driver registers.
        num_cpus: How many tasks of one CPU each run at a time.
        num_gpus: How many GPUs to hand out.
        memory: Bytes that tasks and actors may reserve.
        resources: Custom resources.
        labels: Of the node.
        object_store_memory: Capacity of the object store in bytes.
        object_spilling_directory: Where objects are written that it has no room for, instead of the config's `spill_dir`. The URL of a
            folder elsewhere is taken for its `spill_remote`.
        node_name: For people.
        node_ip: How the node is called.
        preload: Modules that the zygote imports before it forks.
        prestart: How many workers to fork for `job` at once.
        program: What the head process runs (tests have workers of their own).
        door: If it is a node of a cluster: where its door is and which cluster that is.

    Raises:
        ValueError: an amount of a resource is negative, or objects cannot be spilled to that directory.
        InternalError: the process could not be made.
    """
    try:
        if config.spill:
            place = object_spilling_directory or config.spill_dir
            if "://" in place:
                # A place elsewhere, where what is on the disk here goes on to.
                config, place = msgspec.structs.replace(config, spill_remote=place), ""
            if config.spill_remote:
                _check_target(config.spill_remote)
            _make_spill(session, place)
        store_bytes = (
            default_capacity_bytes(Path(session.shm_dir), config.store_fraction)
            if object_store_memory is None
            else object_store_memory
        )
        gpus = gpu_ids(num_gpus)
        boot = Boot(
            token=session.token,
            session=session.name,
            session_dir=session.directory,
            shm_dir=session.shm_dir,
            lock_fd=session.lock_fd,
            driver_pid=os.getpid() if door is None or door.lifeline else 0,
            total=node_total(
                num_cpus,
                len(gpus) if num_gpus is None else num_gpus,
                memory,
                store_bytes,
                node_ip,
                resources,
                is_head=door is None or door.is_head,
            ),
            gpu_ids=gpus,
            labels=dict(labels or {}),
            store_bytes=store_bytes,
            config=config,
            node_name=node_name,
            node_ip=node_ip,
            preload=preload or [],
            job=job,
            prestart=prestart,
        )
        if door is not None:
            boot.host, boot.port, boot.control = door.host, door.port, door.control
            boot.cluster_name, boot.is_head = door.cluster_name, door.is_head
        return _spawn(session, boot, program)
    except BaseException:
        session.remove()
        raise


def launch_head(
    session: Session,
    config: Config,
    *,
    timeout_s: float = START_TIMEOUT_S,
    meanwhile: Callable[[], None] | None = None,
    interrupted: Callable[[], None] | None = None,
    **options: Any,
) -> Head:
    """Start the head of a session and wait until it serves.

    Args:
        session: Fresh; removed if the start fails.
        config: For all processes of the session.
        timeout_s: How long the head may take to start.
        meanwhile: Called once while the head starts, for what takes time and needs no head.
        interrupted: Called again and again while the head starts; may raise (a deferred Ctrl-C).
        **options: Those of `begin_head`.

    Raises:
        ValueError: an amount of a resource is negative, or objects cannot be spilled where they are to be.
        InternalError: the head did not start; the text has what it said.
    """
    head = begin_head(session, config, **options)
    try:
        sweep_dead_sessions(os.path.dirname(session.directory))
        if meanwhile is not None:
            meanwhile()
    except BaseException:
        head.stop(timeout_s=1.0)
        raise
    head.await_ready(timeout_s, interrupted)
    return head


def _make_spill(session: Session, place: str) -> None:
    path = session.make_spill(place)
    if is_in_memory(Path(path)):
        _log.warning(
            "objects that the store has no room for are written to %s, which is in memory too: choose a place on a disk "
            "(object_spilling_directory)",
            path,
        )


def _check_target(url: str) -> None:
    protocol = url.partition("://")[0]
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        advice = "install shoal[spill-remote], and what fsspec needs for it"
        raise ValueError(
            f"spilled objects cannot go on to {url}: {error}. For an address like this, {advice}; or give the path of a folder of this "
            "machine (object_spilling_directory)"
        ) from error


def _spawn(session: Session, boot: Boot, code: str) -> Head:
    program = Program(
        "the head process",
        code,
        boot,
        log_path=head_log(session.directory),
        variables={SESSION_VARIABLE: session.name},
        pass_fds=(session.lock_fd,),
        lifeline=bool(boot.driver_pid),
    )
    return Head(session, program)


def _await_ready(
    program: Program, timeout_s: float, interrupted: Callable[[], None] | None
) -> Ready:
    return program.await_ready(timeout_s, interrupted)
