"""Fixtures of the store: a directory in shared memory, and a check that no test leaves maps, descriptors or files."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.store import Arena, Location, Reader, remove_session, shm_directory

MB = 1 << 20


def place(location: Location) -> tuple[str, int]:
    """Where a block is, whichever it is of those that were there."""
    return location.segment, location.offset


def open_descriptors() -> list[str]:
    """What this process has open, by target."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def mappings_of(directory: Path) -> list[str]:
    """The lines of this process's memory map that lie in a directory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(directory) in line]


def bytes_in_files(directory: Path) -> int:
    """Pages that the segments in a directory really have."""
    return sum(
        path.stat().st_blocks * 512 for path in directory.iterdir() if path.suffix != ".locks"
    )


@pytest.fixture
def directory() -> Iterator[Path]:
    path = shm_directory(f"test-{secrets.token_hex(4)}")
    yield path
    remove_session(path)
    gc.collect()
    assert not path.exists()
    assert [line for line in open_descriptors() if str(path) in line] == []
    assert mappings_of(path) == []


@pytest.fixture
def arena(directory: Path) -> Iterator[Arena]:
    """An arena with plenty of quota."""
    arena = Arena(directory, "abc", quota_bytes=256 * MB)
    yield arena
    arena.close(unlink=True)


@pytest.fixture
def reader(directory: Path) -> Iterator[Reader]:
    reader = Reader(directory)
    yield reader
    reader.close()
