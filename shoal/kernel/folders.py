"""Whose a folder is: what stands before anything is read from it, made in it or removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_ours(path: str | Path, refused_bits: int = 0) -> bool:
    """Whether something is a folder (and no link to one) of this user, without any of these permissions for others.

    Raises:
        OSError: there is nothing.
    """
    found = os.lstat(path)
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not stat.S_IMODE(found.st_mode) & refused_bits
    )
