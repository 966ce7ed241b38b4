"""Moments in which something dies: caught by stopping a process (SIGSTOP) when a file shows that its work is half done.

A `Partial` tells how much of an object is in a file: the bytes of a copy that arrives, or the blocks of a segment that is written to disk.
`stopped_in_the_middle` waits until that is more than nothing, stops whoever does the work, and looks again: what it yields is true of a
process that does not move. So a test that uses it cannot see another moment than the one it is about; it fails if there was none.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from shoal.testing.cluster import Cluster, ClusterNode
from shoal.util import state
from shoal.util.memory import MemoryReport, memory_report
from shoal.util.records import NodeMemory
from shoal.wire.addresses import creator_at
from tests.api.gates import wait_until

MB: Final = 1 << 20
SIZE: Final = 64 * MB
"""Of objects that are caught on their way to another node: they come in tiny pieces, and are more than sockets hold."""

BIG: Final = 128 * MB
"""Of those that are caught on their way to disk, which is quicker."""

PATIENCE_S: Final = 30.0
_LOOK_S: Final = 0.000_2
_BLOCK: Final = 512


def array(seed: int, size: int = SIZE) -> Any:
    """An object in which no byte is zero, unlike in what was not written yet."""
    assert 0 < seed < 256
    return np.full(size, seed, dtype=np.uint8)


def is_right(found: Any, seed: int, size: int = SIZE) -> bool:
    """Whether that is `array(seed, size)`."""
    return bool(found.nbytes == size and (found == seed).all())


# --- what is half done ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partial:
    """A file with a part of an object of `size` bytes; so many of its megabytes are there."""

    path: Path
    there: int
    size: int = SIZE

    def is_in_the_middle(self) -> bool:
        """Whether something has come, and much is to come: also what is in sockets will not make it whole."""
        return 0 < self.there <= self.size // MB * 3 // 4


def arriving(folder: Path, seed: int, size: int = SIZE) -> Partial | None:
    """The copy of `array(seed, size)` that comes into `folder`, as far as it has come."""
    found = [
        Partial(path, there, size)
        for path in _segments(folder)
        if (there := _megabytes(path, seed, size))
    ]
    assert len(found) <= 1
    return found[0] if found else None


def being_spilled(folder: Path, address: str, size: int = BIG) -> Partial | None:
    """The segment of the process at `address` that is just being written to `folder`, as far as it is: at first there is nothing in it."""
    for path in _segments(folder, creator_at(address)):
        with contextlib.suppress(FileNotFoundError):
            found = Partial(path, path.stat().st_blocks * _BLOCK // MB, size)
            if found.there < size // MB:
                return found
    return None


def _segments(folder: Path, prefix: str = "") -> list[Path]:
    return [
        folder / name
        for name in os.listdir(folder)
        if name.startswith(prefix) and not name.endswith(".locks")
    ]


def _megabytes(path: Path, seed: int, size: int) -> int:
    """How many megabytes of an array of so many bytes are in a file: a byte in the middle of each is looked at."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        byte = bytes([seed])
        return sum(
            os.pread(fd, 1, megabyte * MB + MB // 2) == byte for megabyte in range(size // MB)
        )
    finally:
        os.close(fd)


# --- stopping and killing ------------------------------------------------------------------------------------------------


class Victim:
    """A process that is stopped, goes on, or is killed. Known by its descriptor: nobody else is hit who has its number later."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def close(self) -> None:
        """Let it be, and go on."""
        self.go_on()
        os.close(self._fd)

    def stop(self) -> None:
        """SIGSTOP; when this returns, none of its threads runs."""
        self._send(signal.SIGSTOP)
        wait_until(self._stands_still, f"process {self.pid} stands still")

    def go_on(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; when this returns it has ended, though its parent may not know yet."""
        self._send(signal.SIGKILL)
        wait_until(self.is_dead, f"process {self.pid} is dead")

    def is_dead(self) -> bool:
        """Whether it has ended."""
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def _stands_still(self) -> bool:
        states = set()
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(FileNotFoundError):
                text = Path(f"/proc/{self.pid}/task/{thread}/stat").read_text()
                # After the name in parentheses.
                states.add(text.rpartition(")")[2].split()[0])
        return states == {"T"}


def kill(pid: int) -> None:
    """SIGKILL; when this returns it has ended."""
    victim = Victim(pid)
    try:
        victim.kill()
    finally:
        victim.close()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Inside, a process does nothing."""
    victim = Victim(pid)
    try:
        victim.stop()
        yield
    finally:
        victim.close()


@contextlib.contextmanager
def stopped_in_the_middle(
    pid: int, look: Callable[[], Partial | None], what: str
) -> Iterator[tuple[Victim, Partial]]:
    """Stop a process when `look` sees something half done, which it must be afterwards, too. It goes on at the end, if it lives."""
    victim = Victim(pid)
    try:
        yield victim, _catch(victim, look, what)
    finally:
        victim.close()


def _catch(victim: Victim, look: Callable[[], Partial | None], what: str) -> Partial:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if look() is None:
            time.sleep(_LOOK_S)
            continue
        # It has begun. From now on it makes small steps: however slow this process is, it sees one of them.
        victim.stop()
        found = look()
        if found is not None and found.is_in_the_middle():
            return found
        # Too early; or too late for this one, and there may be others.
        victim.go_on()
    raise AssertionError(f"this was never seen in the middle: {what}")


# --- places, and what is there --------------------------------------------------------------------------------------------


def shared_memory(session_dir: str) -> Path:
    """Where a node keeps its objects."""
    return Path((Path(session_dir) / "shm").read_text())


def spill_folder(session_dir: str) -> Path:
    """Where it writes them when they are too many."""
    return (Path(session_dir) / "spill").resolve()


def workers_of(node: ClusterNode) -> set[int]:
    """The workers of a node that live."""
    found = set()
    for process in psutil.Process(node.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "shoal:worker" and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def report() -> MemoryReport:
    """What all processes know of all objects."""
    with state.asking(None, PATIENCE_S) as questions:
        return memory_report(questions)


def left_over(found: NodeMemory) -> int:
    """Bytes of a node's store that somebody's object takes."""
    return (
        found.objects
        + found.copies
        + found.freed_in_view
        + found.left_by_ended
        + found.on_disk
        + found.leaked
    )


def wait_until_nothing_is_stored(cluster: Cluster) -> None:
    """No node has an object, in memory or on disk, nor a file with a part of one; and nothing leaks."""
    seen: list[object] = []
    # The frame of the test, with its references, may be in a circle with an error that it has caught.
    gc.collect()

    def look() -> bool:
        found = report()
        on_disk = [
            path for node in cluster.nodes for path in spill_folder(node.session_dir).iterdir()
        ]
        seen[:] = [found.objects, found.nodes, found.blocks, found.silent, on_disk]
        return not (found.blocks or found.silent or on_disk or any(map(left_over, found.nodes)))

    try:
        wait_until(look, "nothing is stored any more", PATIENCE_S)
    except AssertionError:
        raise AssertionError(f"this is still stored: {seen}") from None


def files_of(node: ClusterNode) -> list[Path]:
    """The folders that go with a node."""
    return [Path(node.session_dir), shared_memory(node.session_dir), spill_folder(node.session_dir)]


def files_on_disk(cluster: Cluster, number: int) -> list[str]:
    return os.listdir(spill_folder(cluster.nodes[number].session_dir))


def is_known(id_: str) -> bool:
    """Whether any process counts on an object."""
    return id_ in {one.object_id for one in report().objects}


def copies_at(node_id: str) -> int:
    """Bytes of copies that a node has."""
    return next(node.copies for node in report().nodes if node.node_id == node_id)
