"""The zygote: the process that forks workers, and outlives everybody to clean up.

It is forked from the head when that has imported what workers need, and before it has threads or an event loop. Then
it does one thing at a time: a fork of a process with threads would copy locks that nobody will ever release. All modules that it
has imported are shared, page by page, with the workers.

::

    head ──Fork(id, job), stdout, stderr──► zygote ──fork──► worker ─► shoal.worker.main.run(boot)
         ◄──Forked(id, pid)────────────────        ◄─SIGCHLD──┘
         ◄──Exited(pid, status)────────────

Guarantees:
- a worker is in a process group of its own, and that whole group is killed when the worker has ended, so that processes
  which user code started do not stay behind (those that left the group on purpose do);
- a worker dies with the zygote (PR_SET_PDEATHSIG), and the zygote ends with the head (end of file on their socket pair):
  then it kills all workers and removes the session's shared memory and folder, even after `kill -9` of the head.

It speaks over a SOCK_SEQPACKET pair: one message a packet, so that the descriptors sent with a `Fork` belong to it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import msgspec

from shoal.messages.boot import WorkerBoot
from shoal.messages.zygote import Exited, Fork, Forked, Kill, Preload, ToZygote
from shoal.wire.addresses import WORKER, make_address, make_name
from shoal.wire.descriptors import MOST_WITH_USER_CODE, raise_descriptor_limit
from shoal.wire.session import node_path, remove_session

MAX_PACKET_BYTES: Final = 256 * 1024
SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024

_PR_SET_PDEATHSIG: Final = 1
_LAST_WAIT_S: Final = 2.0
_FDS_SPACE: Final = socket.CMSG_SPACE(2 * array.array("i").itemsize)

# One thread a process unless the user says otherwise: many workers with many threads each only get in each other's way.
ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

USERS_THREADS: Final = "SHOAL_USER_OMP_NUM_THREADS"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ToZygote).decode

Run = Callable[[WorkerBoot], object]


class Session(msgspec.Struct, frozen=True):
    """What the zygote knows of the session."""

    session_dir: str
    shm_dir: str
    token: bytes
    lock_fd: int
    place: str


class Zygote:
    """Serves the head until it is gone. `run` is what workers do."""

    def __init__(self, head: socket.socket, session: Session, run: Run) -> None:
        self._head = head
        self._session = session
        self._pid = os.getpid()
        # Loaded here: the first fork must not wait for it, and workers share the pages.
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._workers: dict[int, bytes] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        _limit_threads()
        # For its workers.
        raise_descriptor_limit(MOST_WITH_USER_CODE)
        self._run = run

    def serve(self) -> WorkerBoot | None:
        """Serve; None when the head is gone and all is cleaned up. In a worker, its boot record, at once."""
        poll = select.poll()
        poll.register(self._head, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        gc.collect()
        gc.freeze()
        while True:
            poll.poll()
            self._reap()
            packet = self._receive()
            if packet is None:
                continue
            data, fds = packet
            if not data:
                self._clean_up()
                return None
            message = _decode(data)
            if isinstance(message, Fork):
                boot = self._fork(message, fds)
                if boot is not None:
                    return boot
            elif isinstance(message, Kill):
                self._signal_group(message.pid, message.signal)
            else:
                _preload(message)
                gc.freeze()

    def run(self, boot: WorkerBoot) -> object:
        """Be a worker."""
        return self._run(boot)

    # --- the head ------------------------------------------------------------------------------------------------

    def _receive(self) -> tuple[bytes, list[int]] | None:
        """A packet and its descriptors; None if there is none; no bytes at the end of the stream."""
        # Not socket.recv_fds, which ignores its flags (until Python 3.13) and would block.
        flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        try:
            data, ancillary, _, _ = self._head.recvmsg(MAX_PACKET_BYTES, _FDS_SPACE, flags)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b"", []
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return data, list(fds)

    def _send(self, message: Forked | Exited) -> None:
        # If the head is gone, the next receive says so.
        with contextlib.suppress(ConnectionError):
            self._head.send(_encode(message))

    # --- workers -------------------------------------------------------------------------------------------------

    def _fork(self, message: Fork, fds: list[int]) -> WorkerBoot | None:
        """Fork; None in the zygote, the boot record in the worker."""
        try:
            if len(fds) != 2:
                self._send(Forked(message.worker_id, 0, "its output pipes did not arrive"))
                return None
            try:
                pid = os.fork()
            except OSError as error:
                self._send(Forked(message.worker_id, 0, f"could not be forked: {error.strerror}"))
                return None
            if pid:
                # Both sides do this, so that it is done whoever comes first.
                with contextlib.suppress(OSError):
                    os.setpgid(pid, pid)
                self._workers[pid] = message.worker_id
                self._send(Forked(message.worker_id, pid))
                return None
            return self._become_worker(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _become_worker(self, message: Fork, fds: list[int]) -> WorkerBoot:
        os.setpgid(0, 0)
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            # The zygote died before the order to die with it was in force.
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        self._head.close()
        for fd in (self._wake_read, self._wake_write, self._session.lock_fd):
            os.close(fd)
        self._workers.clear()
        gc.enable()
        session, job = self._session, message.job
        _enter_job(job.sys_path, job.cwd, message.environ)
        name_process("shoal:worker")
        return WorkerBoot(
            message.worker_id,
            node_path(session.session_dir),
            session.token,
            make_address(session.place, make_name(WORKER, message.worker_id)),
            job,
        )

    def _signal_group(self, pid: int, number: int) -> None:
        if pid in self._workers:
            # The worker by itself too: user code may have moved it to another group.
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    send(pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        while True:
            try:
                # First look, then kill the group, and only then let the pid go: until it is reaped, no other process
                # can have it.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            self._signal_group(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            if self._workers.pop(pid, None) is not None:
                peak_bytes = usage.ru_maxrss * 1024
                self._send(Exited(pid, os.waitstatus_to_exitcode(status), peak_bytes))

    # --- the end -------------------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """The head is gone: nothing of the session may stay."""
        deadline = time.monotonic() + _LAST_WAIT_S
        for pid in self._workers:
            self._signal_group(pid, signal.SIGKILL)
        while self._workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.002)
        remove_session(self._session.session_dir, self._session.shm_dir)


def _limit_threads() -> None:
    own = os.environ.get("OMP_NUM_THREADS")
    if own is not None:
        # Workers set the number to the CPUs of each task, but not against the user's wish.
        os.environ[USERS_THREADS] = own
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")


def _ignore(_number: int, _frame: types.FrameType | None) -> None:
    """SIGCHLD needs a handler, or the wake-up descriptor stays silent."""


def _preload(message: Preload) -> None:
    path = list(sys.path)
    sys.path[:] = message.sys_path or path
    try:
        for name in message.modules:
            threads = _thread_count()
            try:
                importlib.import_module(name)
                if _thread_count() > threads:
                    print(
                        f"importing {name} starts threads, which workers forked after it do not have: if they hang, take it "
                        "off the preload list",
                        file=sys.stderr,
                    )
            except Exception as error:  # noqa: BLE001 - a module's own code runs here, and preloading is only a favour
                print(f"preloading {name} failed: {error!r}", file=sys.stderr)
    finally:
        sys.path[:] = path


def _thread_count() -> int:
    """Threads of this process, those of C libraries too."""
    return len(os.listdir("/proc/self/task"))


def _enter_job(sys_path: list[str], cwd: str, environ: Mapping[str, str]) -> None:
    """Make the process look like one that was started for the job."""
    os.environ.update(environ)
    sys.path[:] = [*sys_path, *(entry for entry in sys.path if entry not in sys_path)]
    sys.argv[:] = [""]
    # User code that looks at __main__ must not find the daemon's.
    sys.modules["__main__"] = types.ModuleType("__main__")
    # Line by line, or what a worker printed last would wait in its buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # they are text streams of this interpreter
    try:
        os.chdir(cwd)
    except OSError as error:
        print(f"the driver's working directory cannot be entered: {error}", file=sys.stderr)
    # A fork copies numpy's global generator: without this all workers would draw the same numbers. (`random` sees to it
    # itself.)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def name_process(name: str) -> None:
    """Name this process in `ps` and `top` (15 bytes)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def load_worker() -> Run:
    """Import the runtime of workers."""
    from shoal.worker.main import run

    return run


def serve_and_exit(head: socket.socket, session: Session, run: Run) -> NoReturn:
    """The whole life of the zygote process, and of the workers that are forked from it."""
    code = 1
    try:
        zygote = Zygote(head, session, run)
        boot = zygote.serve()
        if boot is not None:
            zygote.run(boot)
            _finish_worker()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - the outermost frame of a process: report, then leave with a code
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: the frames and exit handlers below us are the head's.
        os._exit(code)


def _finish_worker() -> None:
    """What an interpreter does at its end for the user's sake: join threads, run exit handlers."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # as `multiprocessing` does in its forked children
    atexit._run_exitfuncs()
