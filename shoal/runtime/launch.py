"""Starting a session of one's own: its folder, its token, and the head process.

The driver makes the session's folder and keeps its lock until the head has it too; it writes the boot record to the
head's standard input and keeps that pipe as a lifeline: should the driver die in any way, the head notices and ends.

Guarantees: `launch_head` returns a head that serves, or raises with what the head itself said, and then leaves nothing
behind; `Head.stop` is bounded, may be called again, and leaves no process and no file. Sessions that died without cleaning
up (all of their processes were killed at once) are removed by the next start of the same user.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

import msgspec

from shoal.config import Config
from shoal.errors import InternalError
from shoal.messages.boot import Boot, BootAnswer, BootFailed
from shoal.messages.node import Job
from shoal.runtime.machine import gpu_ids, node_total
from shoal.runtime.session_folder import SESSION_VARIABLE, Session, sweep_dead_sessions
from shoal.store import default_capacity_bytes
from shoal.wire.framing import HEADER_BYTES, encode_frame
from shoal.wire.session import log_dir, node_path, private

__all__ = ["HEAD_PROGRAM", "Head", "Session", "launch_head"]

START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 8.0
_TAIL_BYTES: Final = 4096
_LOOK_S: Final = 0.05
_PRESTART: Final = 2
_MAX_ANSWER_BYTES: Final = 64 * 1024

# Where to find the packages comes as arguments: the driver may have them from a path that the head would not search. `-P`
# keeps the working directory out of the search, or a user's `logging.py` would end up in the daemon. What is imported stays, so
# there is nothing to collect until the head serves.
HEAD_PROGRAM: Final = (
    "import gc, sys; gc.disable(); sys.path += [p for p in sys.argv[1:] if p not in sys.path]; "
    "from shoal.node.head import main; main()"
)


class Head:
    """The head process of a session that this process started.

    Attributes:
        session: Its folder and token.
        path: Where its node daemon listens.
        pid: Its process.
    """

    def __init__(self, session: Session, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.session = session
        self.path = node_path(session.directory)
        self.pid = process.pid
        self._process = process
        self._log = log
        self._owner_pid = os.getpid()
        self._stopping = threading.Lock()
        self._stopped = False

    def is_alive(self) -> bool:
        """Whether the head runs."""
        return not self._stopped and self._process.poll() is None

    def log_tail(self) -> str:
        """The last lines that the head wrote, even if its log file is gone."""
        return "" if self._stopped else _tail(self._log)

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the session's processes and remove its files. In a child forked by user code it does nothing: the session
        is the parent's."""
        if os.getpid() != self._owner_pid:
            return
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            _end(self._process, timeout_s)
            self._log.close()
            self.session.remove()


def launch_head(
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
    node_name: str = "",
    node_ip: str = "127.0.0.1",
    preload: list[str] | None = None,
    prestart: int = _PRESTART,
    timeout_s: float = START_TIMEOUT_S,
    program: str = HEAD_PROGRAM,
    meanwhile: Callable[[], None] | None = None,
    interrupted: Callable[[], None] | None = None,
) -> Head:
    """Start the head of a session and wait until it serves.

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
        node_name: For people.
        node_ip: How the node is called.
        preload: Modules that the zygote imports before it forks.
        prestart: How many workers to fork for `job` at once.
        timeout_s: How long the head may take to start.
        program: What the head process runs (tests have workers of their own).
        meanwhile: Called once while the head starts, for what takes time and needs no head.
        interrupted: Called again and again while the head starts; may raise (a deferred Ctrl-C).

    Raises:
        ValueError: an amount of a resource is negative.
        InternalError: the head did not start; the text has what it said.
    """
    try:
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
            driver_pid=os.getpid(),
            total=node_total(
                num_cpus,
                len(gpus) if num_gpus is None else num_gpus,
                memory,
                store_bytes,
                node_ip,
                resources,
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
        head = _spawn(session, boot, program)
    except BaseException:
        session.remove()
        raise
    try:
        sweep_dead_sessions(os.path.dirname(session.directory))
        if meanwhile is not None:
            meanwhile()
        _await_ready(head, timeout_s, interrupted)
    except BaseException:
        head.stop(timeout_s=1.0)
        raise
    session.unlock()
    return head


def _spawn(session: Session, boot: Boot, program: str) -> Head:
    if not sys.executable:
        raise InternalError("sys.executable is not set, so shoal cannot start processes of its own")
    packages = [_root_of("shoal"), _root_of("msgspec")]
    path = f"{log_dir(session.directory)}/head.err"
    log = open(path, "w+b", opener=private)  # noqa: SIM115 - the Head closes it
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, SESSION_VARIABLE: session.name},
            pass_fds=(session.lock_fd,),
            # Ctrl-C in the terminal is for the driver, which then ends the session in good order.
            start_new_session=True,
        )
    except BaseException:
        log.close()
        raise
    head = Head(session, process, log)
    assert process.stdin is not None
    # If it is gone already, waiting for its answer finds out and says why.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(encode_frame(msgspec.msgpack.encode(boot)))
        process.stdin.flush()
    return head


def _await_ready(
    head: Head, timeout_s: float, interrupted: Callable[[], None] | None = None
) -> None:
    process = head._process
    assert process.stdout is not None
    data = _read_answer(process.stdout.fileno(), time.monotonic() + timeout_s, interrupted)
    process.stdout.close()
    said = head.log_tail()
    what_it_said = f"\nIts last words:\n{said}" if said else ""
    if data is None:
        raise InternalError(
            f"the head process did not answer within {timeout_s:g} s.{what_it_said}"
        )
    if not data:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        raise InternalError(
            f"the head process ended before it was ready (exit code {process.returncode}).{what_it_said}"
        )
    answer = msgspec.msgpack.decode(data, type=BootAnswer)
    if isinstance(answer, BootFailed):
        raise InternalError(f"the head process could not start: {answer.reason}.{what_it_said}")


def _read_answer(fd: int, deadline: float, interrupted: Callable[[], None] | None) -> bytes | None:
    """One frame's payload; no bytes if the stream ends before, None if the time does."""
    data = b""
    wanted = HEADER_BYTES
    while len(data) < wanted:
        left_s = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([fd], [], [], min(left_s, _LOOK_S))
        if interrupted is not None:
            interrupted()
        if not ready:
            if left_s:
                continue
            return None
        piece = os.read(fd, wanted - len(data))
        if not piece:
            return b""
        data += piece
        if len(data) == HEADER_BYTES == wanted:
            wanted += min(int.from_bytes(data, "little"), _MAX_ANSWER_BYTES)
    return data[HEADER_BYTES:]


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End the head: by its lifeline, or else by SIGKILL, after which the zygote cleans up."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What could not be written at the start cannot be flushed now.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: IO[bytes]) -> str:
    end = os.fstat(log.fileno()).st_size
    return (
        os.pread(log.fileno(), _TAIL_BYTES, max(0, end - _TAIL_BYTES))
        .decode(errors="replace")
        .strip()
    )


def _root_of(package: str) -> str:
    """The folder in which a package that is imported already was found."""
    file = sys.modules[package].__file__
    assert file is not None
    return os.path.dirname(os.path.dirname(os.path.abspath(file)))
