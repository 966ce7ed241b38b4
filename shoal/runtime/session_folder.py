"""The folders of this user's sessions: making one, and removing those whose processes are all dead.

A session that ends in any usual way removes its own files: the zygote does, or the head, or the driver. If all of its
processes are killed at once nobody is left to, so every start looks for folders whose lock is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import tempfile
import time
from pathlib import Path
from typing import Final

from shoal.kernel.folders import is_ours
from shoal.kernel.processes import has_variable, pids, stat_of
from shoal.store import private_directory, shm_directory
from shoal.wire.handshake import new_token
from shoal.wire.session import (
    CONTROL_PREFIX,
    HEAD,
    LOCK,
    SESSION_PREFIX,
    SHM,
    STORAGE_FILE,
    check_path_length,
    folder_name,
    log_dir,
    name_elsewhere,
    private,
    remove_session,
    spill_path,
    try_lock,
)

SESSION_VARIABLE: Final = "SHOAL_SESSION"
"""In the environment of the head and of all that descends from it: the session's name."""

_HALF_MADE_S: Final = 60.0


class Session:
    """A session's folder, made and locked by this process.

    Attributes:
        name: `s-` and eight hexadecimal digits.
        directory: Its folder.
        shm_dir: Its shared-memory directory.
        token: The secret that its processes prove to each other.
    """

    def __init__(self, root: str | None = None, token: bytes | None = None) -> None:
        """`token` is the cluster's, if the session is that of a node; else one is drawn."""
        root = session_root(root)
        self.name = f"{SESSION_PREFIX}{secrets.token_hex(4)}"
        self.directory = f"{root}/{self.name}"
        self.token = new_token() if token is None else token
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
            self.shm_dir = str(shm_directory(name_elsewhere(self.directory)))
            with open(f"{self.directory}/{SHM}", "w", encoding="utf-8", opener=private) as file:
                file.write(self.shm_dir)
        except BaseException:
            self.remove()
            raise

    def make_spill(self, place: str = "") -> str:
        """Make the folder for what the object store has no room for; its path.

        Args:
            place: Where to make it; by default in the session's own folder.

        Raises:
            ValueError: that cannot be done.
        """
        own = spill_path(self.directory)
        if not place:
            os.mkdir(own, 0o700)
            return own
        path = f"{os.path.abspath(place)}/{folder_name(self.directory)}"
        # First the link to it: whoever removes the session finds it by that, however soon this process is killed.
        os.symlink(path, own)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            private_directory(Path(path))
        except OSError as error:
            raise ValueError(
                f"objects cannot be spilled to {place}: {error}. Choose another object_spilling_directory"
            ) from error
        return path

    def unlock(self) -> None:
        """Leave the lock to the head."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Remove what is left of the session, if its own processes have not done so."""
        self.unlock()
        kill_orphans(self.directory)
        remove_session(self.directory, self.shm_dir)


def session_root(root: str | None = None) -> str:
    """The folder of this user's sessions, made if need be: `root`, `$SHOAL_TMPDIR`, or `/tmp/shoal-<uid>`.

    Raises:
        PermissionError: it is not ours, or others may write to it.
    """
    root = root or os.environ.get("SHOAL_TMPDIR") or ""
    path = os.path.abspath(root) if root else f"{tempfile.gettempdir()}/shoal-{os.getuid()}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    if not is_ours(path, refused_bits=0o022):
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
        if not name.startswith((SESSION_PREFIX, CONTROL_PREFIX)):
            continue
        fd = try_lock(path)
        if fd is None:
            continue
        try:
            if name.startswith(CONTROL_PREFIX) and os.path.exists(f"{path}/{STORAGE_FILE}"):
                # What the control store has written down is for the next one of its name.
                continue
            kill_orphans(path)
            remove_session(path, shm_of(path))
            swept += 1
        finally:
            os.close(fd)
    return swept


def shm_of(session_dir: str) -> str:
    """The shared-memory directory that a session noted; "" if what it noted cannot be one of ours."""
    try:
        with open(f"{session_dir}/{SHM}", encoding="utf-8") as file:
            path = file.read()
        ours = is_ours(path)
    except (OSError, ValueError):
        return ""
    return path if ours and os.path.basename(path) == folder_name(session_dir) else ""


def kill_orphans(session_dir: str) -> int:
    """Kill what the workers of a dead session had started; how many there were.

    The zygote does this when it can. Those who left the head's terminal session (`setsid`) did so in order to outlive
    it, and may.
    """
    try:
        with open(f"{session_dir}/{HEAD}", encoding="ascii") as file:
            head = int(file.read())
    except (OSError, ValueError):
        return 0
    killed = 0
    for pid in pids():
        stat = stat_of(pid)
        # The number of a session may be somebody else's by now; its name is not.
        if (
            stat is not None
            and stat.session == head
            and has_variable(pid, SESSION_VARIABLE, os.path.basename(session_dir))
        ):
            # It may have ended just now.
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed
