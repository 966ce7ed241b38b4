"""Finds what a test left behind: processes, threads, descriptors, shared memory, session folders.

A snapshot maps each kind of thing to the things of that kind that exist now. Whatever exists later and is not in the
snapshot has leaked, once it has had a few seconds to go: a daemon that was asked to end needs a moment, and how long
that moment may last is part of what shoal promises.

Guarantees: each kind has an identity that is not reused while the snapshot is held (a process is its pid *and* its start,
a descriptor its number *and* its file), so that nothing new hides behind something old. Runs on one machine do not see
each other: a process belongs to this run if it descends from it or carries the run's session root in its environment or
command line, shared memory if it has the mark of that root in its name. What the check cannot see are threads made in C.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

SHARED_MEMORY: Final = Path("/dev/shm")
SETTLE_S: Final = 5.0

Things = dict[Hashable, str]
"""Identity and description of each thing of one kind."""


@dataclass(frozen=True)
class Leak:
    """One thing that was not there before; `what` names it so that one can go and look."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(frozen=True)
class Snapshot:
    """What existed at one moment, by kind, then identity, then description."""

    session_root: Path
    things: dict[str, Things]


def take_snapshot(session_root: Path, kinds: Collection[str] | None = None) -> Snapshot:
    """What exists now. `session_root` is the folder where this run's sessions live."""
    chosen = PROBES if kinds is None else {kind: PROBES[kind] for kind in kinds}
    return Snapshot(session_root, {kind: probe(session_root) for kind, probe in chosen.items()})


def leaks_since(before: Snapshot, kinds: Collection[str] | None = None) -> list[Leak]:
    """What exists now and did not `before`."""
    now = take_snapshot(before.session_root, before.things if kinds is None else kinds)
    return [
        Leak(kind, what)
        for kind, things in now.things.items()
        for identity, what in things.items()
        if identity not in before.things[kind]
    ]


def wait_until_clean(
    before: Snapshot, seconds: float = SETTLE_S, kinds: Collection[str] | None = None
) -> list[Leak]:
    """Wait until nothing is left over, and return what still is after `seconds`."""
    found = leaks_since(before, kinds)
    if not found:
        return []
    # Descriptors and mappings may hang on reference cycles; that garbage is not collected yet is not a leak.
    gc.collect()
    deadline = time.monotonic() + seconds
    pause = 0.005
    while (found := leaks_since(before, kinds)) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return found


def report(found: list[Leak], seconds: float = SETTLE_S) -> str:
    """The message of a failed check."""
    lines = "\n".join(f"  {leak}" for leak in found)
    return f"{len(found)} left over {seconds:g} s after the test:\n{lines}"


# --- probes: what there is of each kind ------------------------------------------------------------------------------


def _processes(session_root: Path) -> Things:
    own = psutil.Process()
    mine: dict[int, psutil.Process] = {child.pid: child for child in own.children(recursive=True)}
    # A daemon that left the family is known by the session root that it was given.
    marker = os.fsencode(session_root)
    for pid in psutil.pids():
        if pid not in mine and pid != own.pid and _carries(pid, marker):
            try:
                mine[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
    things: Things = {}
    for pid, process in mine.items():
        try:
            with process.oneshot():
                state = f"{process.status()}, parent {process.ppid()}"
                command = (
                    _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
                )
                # One that ended and was not reaped has a name but no command line any more.
                what = f"pid {pid} ({state}): {command.strip() or f'[{process.name()}]'}"
                things[pid, process.create_time()] = what
        except psutil.NoSuchProcess:
            continue
    return things


def _carries(pid: int, marker: bytes) -> bool:
    """Whether a process has `marker` in its environment or command line. Other users' processes have not."""
    return any(marker in _read(f"/proc/{pid}/{name}") for name in ("environ", "cmdline"))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return b""


def _threads(_: Path) -> Things:
    frames = sys._current_frames()
    things: Things = {}
    for thread in threading.enumerate():
        # Python keeps a stand-in for a thread that C started and ended; the kernel knows better.
        if isinstance(thread, threading._DummyThread) and not _task_exists(thread.native_id):
            continue
        frame = frames.get(thread.ident or 0)
        place = f", at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        daemon = ", daemon" if thread.daemon else ""
        things[thread] = f"{thread.name!r} (thread {thread.native_id}{daemon}{place})"
    return things


def _task_exists(native_id: int | None) -> bool:
    return Path(f"/proc/self/task/{native_id}").exists()


def _descriptors(_: Path) -> Things:
    things: Things = {}
    paths: dict[str, str] | None = None
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor by which the folder itself was read
            continue
        if target.startswith("socket:"):
            paths = _socket_paths() if paths is None else paths
            target = f"{target} {paths.get(target, '')}".rstrip()
        things[int(name), status.st_dev, status.st_ino] = f"fd {name} -> {target}"
    return things


def _socket_paths() -> dict[str, str]:
    """`socket:[inode]` of each Unix socket that is bound, and its path."""
    rows = [line.split() for line in _read("/proc/net/unix").decode(errors="replace").splitlines()]
    return {f"socket:[{row[6]}]": row[7] for row in rows[1:] if len(row) > 7}


def _shared_memory(session_root: Path) -> Things:
    """That of this run's sessions, which carry the mark of its root: others come and go, and may be left behind on purpose."""
    try:
        entries = list(os.scandir(SHARED_MEMORY))
    except FileNotFoundError:  # a system without it; there, objects are in the session's folder
        return {}
    ours = f"shoal-{os.getuid()}-{_mark(session_root)}-"
    return {(e.name, e.inode()): e.path for e in entries if e.name.startswith(ours)}


def _mark(session_root: Path) -> str:
    """As `shoal.wire.session.root_mark`, and not by it: what is checked here runs without shoal, too."""
    path = os.fsencode(os.path.abspath(session_root))
    return hashlib.blake2b(path, digest_size=4).hexdigest()


def _sessions(session_root: Path) -> Things:
    try:
        return {(entry.name, entry.inode()): entry.path for entry in os.scandir(session_root)}
    except FileNotFoundError:
        return {}


PROBES: Final[dict[str, Callable[[Path], Things]]] = {
    "process": _processes,
    "thread": _threads,
    "descriptor": _descriptors,
    "shared memory": _shared_memory,
    "session folder": _sessions,
}
