"""Machines with little room: a test in name spaces of its own, where `/dev/shm` and a disk are small file systems that can really be full.

`@in_a_small_world(shm=…, disk=…)` makes a test of a function that gets a `World`: the test runs it in another process, for which these file
systems are mounted, with the same check for what is left behind as every test has. They go with that process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import shoal
from tests.api.scripts import script_environment
from tests.leaks import report, take_snapshot, wait_until_clean

SHARED_MEMORY: Final = Path("/dev/shm")
_SECONDS: Final = 110.0


class World:
    """`disk` is empty, and has as many bytes as the test wanted; so has `shared_memory`."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.shared_memory = SHARED_MEMORY

    @contextlib.contextmanager
    def full(self, folder: Path) -> Iterator[None]:
        """Inside, the file system of a folder has no room for a single page more."""
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                free = os.statvfs(folder)
                size = max(free.f_bavail * free.f_frsize, 1)
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        try:
            assert os.statvfs(folder).f_bavail == 0
            yield
        finally:
            filler.unlink()


def in_a_small_world(
    *, shm: int, disk: int
) -> Callable[[Callable[[World], None]], Callable[[], None]]:
    """See the module's docstring. Sizes in bytes."""

    def make(play: Callable[[World], None]) -> Callable[[], None]:
        @functools.wraps(play)
        def test() -> None:
            if not may_mount():
                pytest.skip("small file systems take name spaces of one's own")
            with tempfile.TemporaryDirectory(prefix="shoal-w", dir="/tmp") as place:
                _run(play, Path(place), shm, disk)

        # pytest would ask for a fixture named `world`.
        del test.__wrapped__  # type: ignore[attr-defined]  # `wraps` has set it
        test.play = play  # type: ignore[attr-defined]  # for the process that runs it
        return test

    return make


@functools.cache
def may_mount() -> bool:
    """Whether this system lets its users make name spaces."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    command = [unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(play: Callable[[World], None], place: Path, shm: int, disk: int) -> None:
    done = subprocess.run(
        [
            *("unshare", "-rm", sys.executable, "-m", "tests.process.faults.worlds"),
            *(play.__module__, play.__name__, str(place), str(shm), str(disk)),
        ],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert not done.returncode, f"{done.stdout}\n{done.stderr}"


def main(module: str, name: str, place: str, shm: str, disk: str) -> None:
    """Inside."""
    folder = Path(place) / "disk"
    folder.mkdir()
    for path, size in ((SHARED_MEMORY, shm), (folder, disk)):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True
        )
    root = Path(os.environ["SHOAL_TMPDIR"])
    test = getattr(importlib.import_module(module), name)
    before = take_snapshot(root)
    try:
        test.play(World(folder))
    finally:
        if shoal.is_initialized():
            shoal.shutdown()
    if left := wait_until_clean(before):
        raise AssertionError(report(left))
    assert os.listdir(SHARED_MEMORY) == os.listdir(folder) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
