"""Starting the control store of a cluster.

::

    starter ── binds the port, makes and locks c-<cluster>/ ──► control store ──► nodes may join

The port is bound before the process exists, so that a taken one is found out at once, and nodes can be started at the same time as the
control store: they connect to a socket that listens already.

Guarantees: a cluster's name is used once in a folder of sessions; what a start that failed has made is gone, unless there was something
before it. The folder of a control store that was killed stays, since its storage may be in it: the next one of that name takes it up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from typing import Final

from shoal.config import Config
from shoal.errors import ShoalError
from shoal.messages.boot import ControlBoot, ControlFile, Ready
from shoal.runtime.joining import read_control_file
from shoal.runtime.launch import PROGRAM, START_TIMEOUT_S
from shoal.runtime.programs import Program
from shoal.runtime.session_folder import SESSION_VARIABLE, session_root
from shoal.wire.addresses import make_place
from shoal.wire.session import (
    CONTROL_PREFIX,
    HEAD,
    STORAGE_FILE,
    control_log,
    log_dir,
    private,
    remove_session,
    take_lock,
)

CONTROL_PROGRAM: Final = PROGRAM.format(module="shoal.control.main")

_CLUSTER_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,62}")
_BACKLOG: Final = 4096
_STOP_TIMEOUT_S: Final = 8.0
_LOOKERS_S: Final = 0.1


class PortError(ShoalError):
    """A socket cannot listen where it should. `host` and `port` say where; `taken` that somebody else does."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        self.host, self.port = host, port
        self.taken = error.errno == errno.EADDRINUSE
        if self.taken:
            why = "another process listens there"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "this machine has no such address"
        else:
            why = error.strerror or str(error)
        super().__init__(f"cannot listen at {make_place(host, port)}: {why}")


class RunsAlready(ShoalError):  # noqa: N818 - named after what is the case
    """There is a living control store of this name. `file` says where, if it has said so already."""

    def __init__(self, cluster_name: str, file: ControlFile | None) -> None:
        self.file = file
        where = f" at {file.control} (pid {file.pid})" if file is not None else ""
        super().__init__(f"the cluster {cluster_name!r} runs already{where}")


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens.

    Raises:
        PortError: it cannot.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A control store that was killed is started again at the same port, where its old connections may still linger.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise PortError(host, port, error) from error
    return sock


class ControlFolder:
    """The folder of a control store, locked by this process until it is handed on.

    Attributes:
        directory: Where it is.
        taken_up: An earlier control store has left it.
    """

    def __init__(self, cluster_name: str, root: str | None = None) -> None:
        """Make it, or take up what is left of one.

        Raises:
            ValueError: no cluster can have this name.
            RunsAlready: a control store lives in it.
            PermissionError: see `session_root`.
        """
        if not _CLUSTER_NAME.fullmatch(cluster_name):
            raise ValueError(
                f"a cluster cannot be called {cluster_name!r}: a name has up to 63 letters, digits and _.-, and begins with one of the "
                "first two"
            )
        root = session_root(root)
        self.directory = f"{root}/{CONTROL_PREFIX}{cluster_name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)
        deadline = time.monotonic() + _LOOKERS_S
        # Whoever only looks whether somebody lives there has the lock for a moment.
        while (fd := take_lock(self.directory)) is None and time.monotonic() < deadline:
            time.sleep(_LOOKERS_S / 10)
        if fd is None:
            raise RunsAlready(cluster_name, read_control_file(self.directory))
        self.lock_fd = fd
        self.taken_up = os.path.exists(f"{self.directory}/{STORAGE_FILE}")
        try:
            os.makedirs(log_dir(self.directory), 0o700, exist_ok=True)
        except BaseException:
            self.give_up()
            raise

    def storage(self) -> str:
        """The address of the storage in this folder."""
        return f"sqlite://{self.directory}/{STORAGE_FILE}"

    def unlock(self) -> None:
        """Leave the lock to the control store."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def give_up(self) -> None:
        """The start has failed."""
        if not self.taken_up:
            self.remove()
        self.unlock()

    def remove(self) -> None:
        """Remove it, if the control store has not."""
        remove_session(self.directory, "")
        self.unlock()


class Control:
    """The process of a control store that this one has started."""

    def __init__(self, folder: ControlFolder, program: Program, place: str) -> None:
        self.folder = folder
        self.place = place
        self.pid = program.pid
        self.program = program

    def await_ready(self, timeout_s: float = START_TIMEOUT_S) -> Ready:
        """Wait until it serves.

        Raises:
            StartError: it did not start; the text has what it said.
        """
        try:
            ready = self.program.await_ready(timeout_s)
        except BaseException:
            self.program.end(1.0)
            self.folder.give_up()
            raise
        self.folder.unlock()
        return ready

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End it (it was told its starter) and remove what it left."""
        self.program.end(timeout_s)
        self.folder.remove()

    def give_up(self) -> None:
        """End it because the start of the whole has failed. What an earlier control store has left is kept, which one that ends in
        good order would remove."""
        if self.folder.taken_up:
            self.kill()
            self.folder.unlock()
        else:
            self.stop()

    def kill(self) -> None:
        """SIGKILL; its folder stays."""
        self.program.process.kill()
        self.program.end(_STOP_TIMEOUT_S)

    def leave(self) -> None:
        """Let it go on without this process (it was told no starter)."""
        self.program.leave()


def begin_control(
    folder: ControlFolder,
    listening: socket.socket,
    config: Config,
    *,
    cluster_name: str,
    token: bytes,
    storage: str = "",
    lifeline: bool = False,
) -> Control:
    """Start the control store of a cluster; `Control.await_ready` waits until it serves.

    Args:
        folder: Its own; given up if the start fails.
        listening: Where it is to serve; closed here.
        config: For the control store.
        cluster_name: How the cluster is called.
        token: Its secret.
        storage: Address of the storage; "" for a file in the folder.
        lifeline: Whether the control store ends with this process.

    Raises:
        InternalError: the process could not be made.
    """
    host, port = listening.getsockname()[:2]
    place = make_place(host, port)
    program: Program | None = None
    try:
        boot = ControlBoot(
            token=token,
            cluster_name=cluster_name,
            directory=folder.directory,
            lock_fd=folder.lock_fd,
            listen_fd=listening.fileno(),
            place=place,
            storage=storage or folder.storage(),
            starter_pid=os.getpid() if lifeline else 0,
            config=config,
        )
        program = Program(
            "the control store",
            CONTROL_PROGRAM,
            boot,
            log_path=control_log(folder.directory),
            variables={SESSION_VARIABLE: os.path.basename(folder.directory)},
            pass_fds=(folder.lock_fd, listening.fileno()),
            lifeline=lifeline,
        )
        with open(f"{folder.directory}/{HEAD}", "w", encoding="ascii", opener=private) as file:
            file.write(str(program.pid))
    except BaseException:
        if program is not None:
            program.process.kill()
            program.end(_STOP_TIMEOUT_S)
        folder.give_up()
        raise
    finally:
        listening.close()
    return Control(folder, program, place)
