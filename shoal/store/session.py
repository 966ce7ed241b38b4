"""The shared-memory directory of a session: where it is, how much fits, and how it is cleaned.

Used by the node daemon, which owns the directory. The processes in it use `Arena` and `Reader`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from shoal.kernel.control_groups import CGROUPS, OWN_GROUPS, memory_groups
from shoal.kernel.folders import is_ours
from shoal.store.layout import check_creator, lock_file, parse_segment

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - ours in it is 0700 and checked
_SESSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_MOUNTS: Final = Path("/proc/self/mountinfo")


def shm_directory(session_name: str, root: Path | None = None) -> Path:
    """The directory for a session's segments, made if need be, for this user only.

    Args:
        session_name: Letters, digits, and `_.-`.
        root: Where to make it, instead of /dev/shm, or the directory for temporary files where that is missing.

    Raises:
        ValueError: the name cannot be part of a path.
        PermissionError: something of that name is there that is not ours alone.
    """
    if not _SESSION.fullmatch(session_name):
        raise ValueError(f"a session is named by letters, digits and '_.-', not {session_name!r}")
    if root is None:
        usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
        root = _SHARED_MEMORY if usable else Path(tempfile.gettempdir())
    return private_directory(root / f"shoal-{os.getuid()}-{session_name}")


def private_directory(path: Path) -> Path:
    """The directory itself, made if need be, for this user only.

    Raises:
        PermissionError: something of that name is there that is not ours alone.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    # Where it is may be everybody's: another user may have been there first, with a link or an open directory.
    if not is_ours(path, refused_bits=0o077):
        raise PermissionError(
            f"{path} exists and is not a directory of this user with mode 0700, so objects would not be safe in it. "
            "Remove it, or use another session name."
        )
    return path


def is_in_memory(directory: Path) -> bool:
    """Whether the file system of a directory keeps its files in memory, so that to write there saves none."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        # Number, parent, device, root, mount point, options; after a dash the kind.
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0] in {"tmpfs", "ramfs"}
    return False


def remove_session(directory: Path) -> None:
    """Remove a session's directory with all that is in it. Views that live stay valid."""
    shutil.rmtree(directory, ignore_errors=True)


def sweep(directory: Path, creator: str) -> int:
    """Remove all segments of a creator that is dead; how many there were. Views that live stay valid."""
    check_creator(creator)
    removed = 0
    for name in os.listdir(directory):
        parts = parse_segment(name)
        if parts is not None and parts[0] == creator:
            (directory / name).unlink(missing_ok=True)
            removed += 1
    (directory / lock_file(creator)).unlink(missing_ok=True)
    return removed


def default_capacity_bytes(directory: Path, fraction: float = 0.3) -> int:
    """How many bytes of objects a node should hold: a fraction of the memory that this process may use, and no more than
    the file system of `directory` has free."""
    found = os.statvfs(directory)
    return min(int(memory_limit_bytes() * fraction), found.f_bavail * found.f_frsize)


def memory_limit_bytes() -> int:
    """The machine's memory, or what the control group of this process may use of it, if that is less."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = memory_groups(OWN_GROUPS, CGROUPS)
    return min([limit, *(bound for group in groups if (bound := group.limit_bytes()) is not None)])
