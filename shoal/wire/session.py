"""The folder of a session: what is where in it, whether it is alive, and how it is removed.

::

    <root>/                      0700, one per user: $SHOAL_TMPDIR or /tmp/shoal-<uid>
      s-<8 hex>/                 0700, one per session
        lock                     locked (flock) for as long as the head or the zygote lives
        shm                      text: the path of the session's shared-memory directory
        spill                    objects that did not fit into it: 0700, or a link to such a folder elsewhere
        remote                   text: the URL of the target to which some of these have gone on          0600
        head                     text: the pid of the head, which is also the number of its terminal session
        starter                  text: who starts it (`runtime.starters`), if `shoal start` does  0600
        node.json                what it is a node of (`messages.boot.NodeFile`)   0600
        token                    of its cluster, or of look.sock                   0600
        node.sock                the node daemon listens here                     0600
        look.sock                there, too, for those who look at a program's own session  0600
        w-<8 hex>.sock           worker                                            0600
        d-<8 hex>.sock           driver                                            0600
        w-<8 hex>.door           where a process gets connections from other nodes 0600
        logs/                    output of the head and of every worker            0600
      c-<name of a cluster>/     0700, one per control store: lock, head, starter, control.json, logs/, and its storage by default

Guarantees: a session's shared memory, and what it has elsewhere on disk, is removed before its folder, so that whoever finds no folder has
nothing to clean up; a folder whose lock can be taken belongs to nobody alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import sys
from typing import Final

from shoal.kernel.folders import is_ours
from shoal.wire.addresses import name_of

MAX_SOCKET_PATH: Final = 107
"""Bytes that the kernel has for the path of a Unix socket."""

LOCK: Final = "lock"
SHM: Final = "shm"
SPILL: Final = "spill"
REMOTE: Final = "remote"
HEAD: Final = "head"
STARTER: Final = "starter"
NODE_FILE: Final = "node.json"
CONTROL_FILE: Final = "control.json"
STORAGE_FILE: Final = "control.db"
"""The storage of a control store, unless it is told another."""
TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file
SESSION_PREFIX: Final = "s-"
"""How the folder of a session begins."""
CONTROL_PREFIX: Final = "c-"
"""How the folder of a control store begins."""
_REMOVAL_TRIES: Final = 5
_CLEAR_S: Final = 20.0
"""How long a remote target may take to remove what a session has there, before that is left to the next who cleans up."""
_LONGEST_NAME: Final = "/w-00000000.sock"


def node_path(session_dir: str) -> str:
    """Where the node daemon listens for the processes of its node."""
    return f"{session_dir}/node.sock"


def look_path(session_dir: str) -> str:
    """Where the node daemon of a program's own session listens for those who only look."""
    return f"{session_dir}/look.sock"


def socket_path(session_dir: str, name: str) -> str:
    """Where the process called `name` listens for those of its own node."""
    return f"{session_dir}/{name}.sock"


def doorstep_path(session_dir: str, name: str) -> str:
    """Where the process called `name` gets its connections from other nodes."""
    return f"{session_dir}/{name}.door"


def remove_entrance(session_dir: str, address: str) -> None:
    """Remove the sockets of a process that has ended; one that was killed could not do so itself."""
    name = name_of(address)
    for path in (socket_path(session_dir, name), doorstep_path(session_dir, name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def bind_private(sock: socket.socket, path: str) -> None:
    """Bind a Unix socket that only this user can connect to, from the first moment on that its file exists."""
    # bind gives the file the socket's mode, or the umask's, as the system has it.
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(path)
    os.chmod(path, 0o600)


def spill_path(session_dir: str) -> str:
    """Where objects are written that the store has no room for; a folder, or a link to one."""
    return f"{session_dir}/{SPILL}"


def spill_target(session_dir: str) -> str:
    """Where the link to a session's spill folder leads; "" if it is none, or leads to what cannot be ours."""
    try:
        path = os.readlink(spill_path(session_dir))
        ours = is_ours(path)
    except OSError:
        return ""
    return path if ours and os.path.basename(path) == folder_name(session_dir) else ""


def folder_name(session_dir: str) -> str:
    """How a session calls folders of its own that are elsewhere (in shared memory, on another disk), among those of others."""
    return f"shoal-{os.getuid()}-{name_elsewhere(session_dir)}"


def name_elsewhere(session_dir: str) -> str:
    """What a session is called among those of all roots: its name, and before it the mark of its root."""
    root, name = os.path.split(session_dir)
    return f"{root_mark(root)}-{name}"


def root_mark(root: str) -> str:
    """Eight digits of the path of a folder of sessions, by which one finds elsewhere what is of that folder."""
    return hashlib.blake2b(os.fsencode(os.path.abspath(root)), digest_size=4).hexdigest()


def log_dir(session_dir: str) -> str:
    """Where the session's logs are."""
    return f"{session_dir}/logs"


def head_log(session_dir: str) -> str:
    """What the node daemon says."""
    return f"{log_dir(session_dir)}/head.err"


def control_log(directory: str) -> str:
    """What the control store with this folder says."""
    return f"{log_dir(directory)}/control.err"


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: files that it makes are for this user alone, whatever the umask is."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write_private(path: str, data: bytes) -> None:
    """Write a file for this user alone; whoever reads it sees all of it, or what was there before."""
    half_made = f"{path}.new"
    with open(half_made, "wb", opener=private) as file:
        file.write(data)
    os.replace(half_made, path)


def check_path_length(session_dir: str) -> None:
    """Raise unless sockets can be made in this folder.

    Raises:
        ValueError: the paths would be longer than the kernel allows.
    """
    longest = len(os.fsencode(session_dir + _LONGEST_NAME))
    if longest > MAX_SOCKET_PATH:
        raise ValueError(
            f"the session folder {session_dir} is too deep: the path of a Unix socket may have "
            f"{MAX_SOCKET_PATH} bytes, and the longest here would have {longest}. Set SHOAL_TMPDIR (or _temp_dir) "
            "to a shorter path."
        )


def try_lock(session_dir: str) -> int | None:
    """Take the lock of a session that may be dead; its descriptor, or None if the session lives (or has no lock)."""
    return _lock(session_dir, fcntl.LOCK_EX)


def take_lock(directory: str) -> int | None:
    """Take the lock of a folder of ours, which may have none yet; its descriptor, or None if somebody has it."""
    return _lock(directory, fcntl.LOCK_EX, os.O_CREAT)


def is_alive(directory: str) -> bool:
    """Whether a process lives that holds the lock of a folder."""
    # Shared, or two who look at the same time would take each other for the process.
    fd = _lock(directory, fcntl.LOCK_SH)
    if fd is not None:
        os.close(fd)
        return False
    return os.path.exists(f"{directory}/{LOCK}")


def _lock(directory: str, how: int, flags: int = 0) -> int | None:
    try:
        fd = os.open(f"{directory}/{LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def note_remote(session_dir: str, url: str) -> None:
    """Note for whoever removes the session that objects of it are at a remote target, in a folder called as by `folder_name`."""
    write_private(f"{session_dir}/{REMOTE}", url.encode())


def remove_session(session_dir: str, shm_dir: str) -> None:
    """Remove all that a session left in the file system, and what it has at a remote target. May be called by several processes at once.

    If the target cannot be reached the session's folder stays, with the note of it and the lock: for the next who removes dead sessions.
    """
    # The link goes with the session's folder: until then another process that removes the session finds its way by it.
    for folder in (shm_dir, spill_target(session_dir)):
        _remove_folder(folder)
    if _clear_remote(session_dir):
        _remove_folder(session_dir)
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(session_dir):
            path = f"{session_dir}/{name}"
            if os.path.isdir(path) and not os.path.islink(path):
                _remove_folder(path)
            elif name not in (LOCK, REMOTE):
                os.unlink(path)


def _remove_folder(folder: str) -> None:
    # Somebody may make files in it while it is being emptied, or remove those that were just listed.
    for _ in range(_REMOVAL_TRIES):
        if not os.path.isdir(folder):
            break
        shutil.rmtree(folder, ignore_errors=True)


def _clear_remote(session_dir: str) -> bool:
    """Whether nothing of the session is at a remote target any more. Another process does it: see `shoal.node.remote_target`."""
    try:
        with open(f"{session_dir}/{REMOTE}", encoding="utf-8") as file:
            url = file.read()
    except OSError:
        return True
    import subprocess

    command = [sys.executable, "-m", "shoal.node.remote_target", url, folder_name(session_dir)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_CLEAR_S,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
