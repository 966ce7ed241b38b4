"""Starting a session of one's own: its folder, its token, and the head process.

The driver makes the session's folder and keeps its lock until the head has it too; it writes the boot record to the
head's standard input and keeps that pipe as a lifeline: should the driver die in any way, the head notices and ends.

Guarantees: `launch_head` returns a head that serves, or raises with what the head itself said, and then leaves nothing
behind; `Head.stop` is bounded, may be called again, and leaves no process and no file. Sessions that died without cleaning
up (all of their processes were killed at once) are removed by the next start of the same user.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import math
import os
import secrets
import select
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any, Final

import msgspec

from shoal.config import Config
from shoal.errors import InternalError
from shoal.messages.boot import Boot, BootAnswer, BootFailed
from shoal.messages.node import UNIT, Job
from shoal.store import default_capacity_bytes, shm_directory
from shoal.store.session import memory_limit_bytes
from shoal.wire.framing import HEADER_BYTES, encode_frame
from shoal.wire.handshake import new_token
from shoal.wire.session import (
    LOCK,
    SHM,
    check_path_length,
    log_dir,
    node_address,
    remove_session,
    try_lock,
)

START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 8.0
_TAIL_BYTES: Final = 4096
_HALF_MADE_S: Final = 60.0
_PRESTART: Final = 2
_MAX_ANSWER_BYTES: Final = 64 * 1024

# Where to find the packages comes as arguments: the driver may have them from a path that the head would not search. `-P`
# keeps the working directory out of the search, or a user's `logging.py` would end up in the daemon.
HEAD_PROGRAM: Final = (
    "import sys; sys.path += [p for p in sys.argv[1:] if p not in sys.path]; "
    "from shoal.node.head import main; main()"
)


class Session:
    """A session's folder, made and locked by this process.

    Attributes:
        name: `s-` and eight hexadecimal digits.
        directory: Its folder.
        shm_dir: Its shared-memory directory.
        token: The secret that its processes prove to each other.
    """

    def __init__(self, root: str | None = None) -> None:
        root = session_root(root)
        self.name = f"s-{secrets.token_hex(4)}"
        self.directory = f"{root}/{self.name}"
        self.token = new_token()
        check_path_length(self.directory)
        # Made under another name and locked before it gets its own: whoever sweeps never sees it unlocked.
        half_made = f"{root}/.new-{self.name}"
        os.mkdir(half_made, 0o700)
        self.lock_fd = os.open(f"{half_made}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.shm_dir = ""
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
            os.mkdir(log_dir(half_made), 0o700)
            os.rename(half_made, self.directory)
            self.shm_dir = str(shm_directory(self.name))
            with open(f"{self.directory}/{SHM}", "w", encoding="utf-8") as file:
                file.write(self.shm_dir)
        except BaseException:
            self.remove()
            raise

    def unlock(self) -> None:
        """Leave the lock to the head."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Remove the session's files, if its processes have not done so."""
        self.unlock()
        remove_session(self.directory, self.shm_dir)


class Head:
    """The head process of a session that this process started.

    Attributes:
        session: Its folder and token.
        address: Where its node daemon listens.
        pid: Its process.
    """

    def __init__(self, session: Session, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.session = session
        self.address = node_address(session.directory)
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

    Raises:
        ValueError: an amount of a resource is negative.
        InternalError: the head did not start; the text has what it said.
    """
    try:
        store_bytes = (
            default_capacity_bytes(_path(session.shm_dir), config.store_fraction)
            if object_store_memory is None
            else object_store_memory
        )
        gpu_ids = _gpu_ids(num_gpus)
        boot = Boot(
            token=session.token,
            session=session.name,
            session_dir=session.directory,
            shm_dir=session.shm_dir,
            lock_fd=session.lock_fd,
            driver_pid=os.getpid(),
            total=_total(
                num_cpus,
                len(gpu_ids) if num_gpus is None else num_gpus,
                memory,
                store_bytes,
                node_ip,
                resources,
            ),
            gpu_ids=gpu_ids,
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
        _await_ready(head, timeout_s)
    except BaseException:
        head.stop(timeout_s=1.0)
        raise
    session.unlock()
    return head


def _spawn(session: Session, boot: Boot, program: str) -> Head:
    if not sys.executable:
        raise InternalError("sys.executable is not set, so shoal cannot start processes of its own")
    packages = [_root_of("shoal"), _root_of("msgspec")]
    log = open(f"{log_dir(session.directory)}/head.err", "w+b")  # noqa: SIM115 - the Head closes it
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
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


def _await_ready(head: Head, timeout_s: float) -> None:
    process = head._process
    assert process.stdout is not None
    data = _read_answer(process.stdout.fileno(), time.monotonic() + timeout_s)
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


def _read_answer(fd: int, deadline: float) -> bytes | None:
    """One frame's payload; no bytes if the stream ends before, None if the time does."""
    data = b""
    wanted = HEADER_BYTES
    while len(data) < wanted:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
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


# --- folders --------------------------------------------------------------------------------------------------------


def session_root(root: str | None = None) -> str:
    """The folder of this user's sessions, made if need be: `root`, `$SHOAL_TMPDIR`, or `/tmp/shoal-<uid>`.

    Raises:
        PermissionError: it is not ours, or others may write to it.
    """
    root = root or os.environ.get("SHOAL_TMPDIR") or ""
    path = os.path.abspath(root) if root else f"{tempfile.gettempdir()}/shoal-{os.getuid()}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.getuid()
        or stat.S_IMODE(found.st_mode) & 0o022
    ):
        raise PermissionError(
            f"{path} is not a directory of this user that only this user can write to, so a session would not be safe in "
            "it. Remove it, or set SHOAL_TMPDIR (or _temp_dir) to another path."
        )
    return path


def sweep_dead_sessions(root: str) -> int:
    """Remove the sessions in `root` that nobody lives in any more; how many there were."""
    swept = 0
    for name in os.listdir(root):
        path = f"{root}/{name}"
        if name.startswith(".new-"):
            # Between its making and its locking a driver was killed.
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(path).st_mtime > _HALF_MADE_S:
                    remove_session(path, "")
            continue
        if not name.startswith("s-"):
            continue
        fd = try_lock(path)
        if fd is None:
            continue
        try:
            remove_session(path, _shm_of(path, name))
            swept += 1
        finally:
            os.close(fd)
    return swept


def _shm_of(session_dir: str, name: str) -> str:
    """The shared-memory directory that a session noted; "" if what it noted cannot be one of ours."""
    try:
        with open(f"{session_dir}/{SHM}", encoding="utf-8") as file:
            path = file.read()
        found = os.lstat(path)
    except (OSError, ValueError):
        return ""
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return path if ours and os.path.basename(path) == f"shoal-{os.getuid()}-{name}" else ""


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


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


# --- what the machine has -------------------------------------------------------------------------------------------


def default_cpus() -> float:
    """CPUs that this process may use: by its affinity, and by the quota of its control group."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            cpus = min(cpus, max(1, math.ceil(int(quota) / int(period))))
    return cpus


def _gpu_ids(num_gpus: float | None) -> list[str]:
    """The ids of the GPUs to hand out: those that are visible, or as many as were asked for."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # "-1" and what follows it hide devices; so does "NoDevFiles".
        ids = []
        for entry in visible.split(","):
            entry = entry.strip()
            if not entry or entry in {"-1", "NoDevFiles"}:
                break
            ids.append(entry)
    else:
        devices = glob.glob("/dev/nvidia[0-9]*")
        ids = [str(index) for index in range(len(devices))]
    if num_gpus is None:
        return ids
    wanted = math.ceil(num_gpus)
    if wanted > len(ids):
        # More than there are, as tests on machines without GPUs ask for.
        ids = [str(index) for index in range(wanted)]
    return ids[:wanted]


def _total(
    num_cpus: float | None,
    num_gpus: float,
    memory: float | None,
    store_bytes: int,
    node_ip: str,
    resources: Mapping[str, float] | None,
) -> dict[str, int]:
    amounts: dict[str, float] = {
        "CPU": default_cpus() if num_cpus is None else num_cpus,
        "GPU": num_gpus,
        "memory": max(0, memory_limit_bytes() - store_bytes) if memory is None else memory,
        "object_store_memory": store_bytes,
        f"node:{node_ip}": 1,
        "node:__internal_head__": 1,
        **(resources or {}),
    }
    for name, amount in amounts.items():
        if amount < 0:
            raise ValueError(f"{name}={amount!r}: a node cannot have less than nothing")
    return {
        name: round(amount * UNIT) for name, amount in amounts.items() if amount or name == "CPU"
    }
