"""The head process, or any node daemon's, from its first to its last moment.

::

    starter ──stdin: Boot──► head ──fork──► zygote ─► workers
            ◄─stdout: Ready─┘  │
                               └─ event loop: node daemon, and the control store if it has none elsewhere

In order: read the boot record; import what workers run; listen, at the node's door too if it is to have one (so that workers can connect
even before the loop runs, and the node knows its place); fork the zygote, while there are no threads; serve. The import comes before the
fork because the two then share its pages, and because importing twice at the same time was no faster even on idle CPUs. It brings pickle
into a process that has no use for it; nothing in `node` or `control` may import it, which the layer test checks.

The head ends when its driver does: at the end of its standard input, or when the driver's process is gone (somebody whom the driver
forked may hold the pipe). One that is nobody's (`driver_pid` 0) ends by SIGTERM. It then hangs up on the zygote, which kills the workers
and removes the session's files; the head waits for that, and sees to it itself if the zygote is dead.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from shoal.config import TLS_SETTINGS
from shoal.messages.boot import Boot, BootFailed, NodeFile, Ready
from shoal.node.zygote import (
    SOCKET_BUFFER_BYTES,
    Run,
    Session,
    load_worker,
    name_process,
    serve_and_exit,
)
from shoal.version import __version__
from shoal.wire.addresses import make_place
from shoal.wire.boot_pipe import answer_boot, read_boot
from shoal.wire.daemon_log import log_to
from shoal.wire.descriptors import raise_descriptor_limit
from shoal.wire.session import (
    HEAD,
    NODE_FILE,
    TOKEN_FILE,
    bind_private,
    head_log,
    node_path,
    private,
    remove_session,
    write_private,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from shoal.node.daemon import Daemon

_BACKLOG: Final = 4096
_ZYGOTE_GRACE_S: Final = 4.0


class _DoorError(Exception):
    """The node's door cannot be opened; says why."""


def main(load: Callable[[], Run] = load_worker) -> None:
    """Be the head. `load` imports and gives what workers run."""
    boot = read_boot(Boot, "shoal.init() or `shoal start`")
    name_process("shoal:head")
    _settle_signals()
    try:
        run = load()
        if boot.config.tls_cert:
            # Workers will need it, and share the pages.
            import shoal.wire.tls_stream  # noqa: F401 - loaded before the fork, used by whoever connects
        door = _open_door(boot)
        with open(f"{boot.session_dir}/{HEAD}", "w", encoding="ascii", opener=private) as file:
            file.write(str(os.getpid()))
        listening = _listen(node_path(boot.session_dir))
        zygote_pid, zygote = _fork_zygote(boot, listening, door, run)
    except _DoorError as error:
        answer_boot(BootFailed(str(error)))
        sys.exit(1)
    except OSError as error:
        answer_boot(BootFailed(f"{error.strerror}: {error.filename or boot.session_dir}"))
        sys.exit(1)
    except Exception as error:
        answer_boot(BootFailed(f"{type(error).__name__}: {error}"))
        raise
    code = 1
    pids: list[int] = []
    try:
        code = _serve(boot, listening, door, zygote, pids)
    except Exception as error:
        # Too late if it was ready already; then the log has it.
        answer_boot(BootFailed(f"{type(error).__name__}: {error}"))
        raise
    finally:
        # Hang up, if the daemon did not come to it: the zygote waits for nothing else.
        zygote.close()
        _finish(boot, zygote_pid, pids)
    # Not sys.exit: there is nothing left to finish, and destroying every module takes longer than the session's end.
    sys.stderr.flush()
    os._exit(code)


def _settle_signals() -> None:
    # The driver's terminal is not ours, and what the driver ignores is not our choice.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _listen(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bind_private(sock, path)
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _open_door(boot: Boot) -> socket.socket | None:
    """Listen where the node is to be reached from others, and note the place that this makes."""
    if not boot.host:
        return None
    door = socket.socket(socket.AF_INET6 if ":" in boot.host else socket.AF_INET)
    try:
        # A door that was closed a moment ago leaves connections behind that nobody uses.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((boot.host, boot.port))
        door.listen(_BACKLOG)
    except OSError as error:
        door.close()
        raise _DoorError(
            f"the node's door cannot be opened at {make_place(boot.host, boot.port)}: {error.strerror}"
        ) from error
    door.setblocking(False)
    boot.place = make_place(boot.host, door.getsockname()[1])
    return door


def _fork_zygote(
    boot: Boot, listening: socket.socket, door: socket.socket | None, run: Run
) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    gc.freeze()
    pid = os.fork()
    if not pid:
        ours.close()
        listening.close()
        if door is not None:
            door.close()
        _be_zygote(boot, theirs, run)
    theirs.close()
    return pid, ours


def _be_zygote(boot: Boot, head: socket.socket, run: Run) -> NoReturn:
    # The lifeline and the answer are between starter and head.
    _let_go_of_pipes()
    name_process("shoal:zygote")
    session = Session(boot.session_dir, boot.shm_dir, boot.token, boot.lock_fd, boot.place)
    serve_and_exit(head, session, run)


def _let_go_of_pipes() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _leave_word(boot: Boot, node_id: bytes, token: bytes) -> None:
    """Write down what this is a node of, for drivers and commands on this machine."""
    write_private(f"{boot.session_dir}/{TOKEN_FILE}", token)
    word = NodeFile(
        node_id=node_id.hex(),
        node_name=boot.node_name,
        place=boot.place,
        control=boot.control,
        cluster_name=boot.cluster_name,
        pid=os.getpid(),
        starter_pid=boot.driver_pid,
        is_head=boot.is_head,
        version=__version__,
        python="{}.{}.{}".format(*sys.version_info),
        tls={name: path for name in TLS_SETTINGS if (path := getattr(boot.config, name))},
    )
    write_private(f"{boot.session_dir}/{NODE_FILE}", msgspec.json.encode(word))


def _serve(
    boot: Boot,
    listening: socket.socket,
    door: socket.socket | None,
    zygote: socket.socket,
    pids: list[int],
) -> int:
    """Run the daemon until the session is over; the exit code. `pids` gets the workers that may still live."""
    import asyncio
    import logging

    from shoal.node.daemon import Daemon

    log_to(head_log(boot.session_dir), boot.config.log_rotate_bytes)
    # Each worker costs the daemon three.
    max_descriptors = raise_descriptor_limit()
    loop = asyncio.new_event_loop()
    try:
        daemon = Daemon(loop, boot, zygote, max_descriptors)
        loop.run_until_complete(daemon.start(listening, door))
        if boot.driver_pid:
            _watch_driver(loop, daemon, boot.driver_pid)
        loop.add_signal_handler(
            signal.SIGTERM, daemon.stop, "the head was told to end (SIGTERM)", 0
        )
        gc.freeze()
        gc.enable()
        _leave_word(boot, daemon.node_id, daemon.look_token)
        answer_boot(Ready(node_path(boot.session_dir), os.getpid(), boot.place, daemon.node_id))
        if not boot.driver_pid:
            _let_go_of_pipes()
        reason, code = loop.run_until_complete(daemon.stopped)
        logging.getLogger("shoal.node").info("the session ends: %s", reason)
        pids += daemon.worker_pids()
        loop.run_until_complete(daemon.close(reason, tell=code != 0))
        return code
    finally:
        loop.close()


def _watch_driver(loop: AbstractEventLoop, daemon: Daemon, driver_pid: int) -> None:
    """End the session when the driver ends."""

    def on_lifeline() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            daemon.stop("the driver has ended", 0)

    def on_driver_gone() -> None:
        daemon.stop("the driver's process is gone", 0)

    loop.add_reader(0, on_lifeline)
    if hasattr(os, "pidfd_open"):
        try:
            loop.add_reader(os.pidfd_open(driver_pid), on_driver_gone)
        except OSError:
            # Gone already, or a kernel without them, where the lifeline must do.
            if os.getppid() != driver_pid:
                daemon.stop("the driver's process is gone", 0)


def _finish(boot: Boot, zygote_pid: int, pids: list[int]) -> None:
    """See that nothing stays: the zygote cleans up and ends; what it cannot do any more is done here."""
    deadline = time.monotonic() + _ZYGOTE_GRACE_S
    while True:
        try:
            ended, _ = os.waitpid(zygote_pid, os.WNOHANG)
        except ChildProcessError:
            break
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(zygote_pid, signal.SIGKILL)
            os.waitpid(zygote_pid, 0)
            break
        time.sleep(0.001)
    if os.path.exists(boot.session_dir) or os.path.exists(boot.shm_dir):
        # It died before its work was done. The workers died with it, but not what they had started.
        for pid in pids:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        remove_session(boot.session_dir, boot.shm_dir)
