"""Segments that go on from the disk to a remote target when the disk is short, and come back when somebody wants to look at them.

::

    memory ──spilled──► the spill folder ──moved, the coldest first──► the target
                              ▲                                           │
                              └────────── brought back, on demand ────────┘

Nobody is told where a segment is: the flag in its creator's lock file says only that it was spilled (`store.spilling`). Whoever does not
find it in the spill folder asks the node, which brings it back, or knows that it is nowhere: the object was freed.

Rule 1. What is moved was written whole, and nobody looks at it: readers hold locks, and so does who fills an object that was made on disk.
        Nobody can be misled by a move: what is in a file never changes, so whoever has it open reads on.
Rule 2. A segment is first whole at the target, then in the table, then gone from the disk; and the other way round when it comes back.
Rule 3. Whoever frees a segment removes its file on disk. Of two who remove the same file one fails: the mover, then it was freed
        meanwhile, and what is at the target goes; or the other one, which then says so here (`forget`).
Rule 4. When the target fails nothing is moved, and what is there is not lost: who wants to look at it is told why it cannot.

One thread moves and brings back, one segment after the other; the table is read by any thread. What is at the target when the node ends
is removed with the session's folder, by whoever removes that: it has a note of the target from before the first segment goes there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from shoal.lock import make_lock
from shoal.node.chores import Chores
from shoal.node.remote_target import Target, TargetError
from shoal.store import locks
from shoal.store.layout import lock_file, parse_segment, segment_range
from shoal.store.spilling import is_spilled
from shoal.wire.session import folder_name, note_remote

_log = logging.getLogger("shoal.node")

_BLOCK: Final = 512
_JOIN_S: Final = 2.0

HERE: Final = ""
"""The answer to who wants a segment brought back: it is in the spill folder. Others begin with the name of an error."""

Answer = Callable[[str], object]


class RemoteSpill:
    """See the module's docstring. Methods may be called in any thread; what they are given to call is called in the mover's.

    Args:
        session_dir: The session's folder.
        directory: Its shared memory, with the lock files.
        folder: The spill folder.
        url: The target.
        shortage: How many bytes must leave the disk before so many can come.

    Attributes:
        spared: A creator whose segments are not moved: the daemon itself, whose copies can be got again.
    """

    def __init__(
        self,
        session_dir: str,
        directory: Path,
        folder: Path,
        url: str,
        shortage: Callable[[int], int],
    ) -> None:
        self.spared = ""
        self._session_dir = session_dir
        self._directory = directory
        self._folder = folder
        self._shortage = shortage
        self._stopped = False
        self._target = Target(url, folder_name(session_dir), lambda: self._stopped)
        self._chores = Chores("shoal-remote")
        self._lock = make_lock()
        # What is at the target, and its length there.
        self._away: dict[str, int] = {}
        # What may be there yet and should not.
        self._garbage: set[str] = set()
        self._noted = False
        self._failing = False

    @property
    def url(self) -> str:
        """Where the target is."""
        return self._target.url

    # --- what is there ---------------------------------------------------------------------------------------------

    def length_of(self, name: str) -> int | None:
        """The length of a segment that is at the target; None if it is not there."""
        with self._lock:
            return self._away.get(name)

    def names_of(self, creator: str) -> dict[str, int]:
        """The segments of a creator that are at the target, with their lengths."""
        with self._lock:
            return {
                name: length
                for name, length in self._away.items()
                if name.rpartition("-")[0] == creator
            }

    # --- orders ----------------------------------------------------------------------------------------------------

    def make_room(self, wanted: int, then: Callable[[int, str], object]) -> None:
        """Move segments until `wanted` bytes of disk are free; `then` hears how many are missing, and what is wrong with the target."""
        self._chores.do(self._begin, wanted, then)

    def bring(self, name: str, answer: Answer) -> None:
        """Bring a segment back."""
        self._chores.do(self._bring, name, answer)

    def bring_within(self, name: str, timeout_s: float) -> str | None:
        """The same for a thread that waits; None if it takes longer."""
        answer: Future[str] = Future()
        self.bring(name, answer.set_result)
        with contextlib.suppress(TimeoutError):
            return answer.result(timeout_s)
        return None

    def forget(self, names: list[str]) -> None:
        """Nobody uses these segments any more, and they were not on the disk."""
        self._chores.do(self._forget, names)

    def close(self) -> None:
        """Move nothing more. What is just moving is broken off, and waited for a little: who clears the target comes next."""
        self._stopped = True
        self._chores.close()
        self._chores.join(_JOIN_S)

    # --- in the thread: moving -------------------------------------------------------------------------------------

    def _begin(self, wanted: int, then: Callable[[int, str], object]) -> None:
        self._go_on(wanted, self._movable(), then)

    def _go_on(self, wanted: int, names: list[str], then: Callable[[int, str], object]) -> None:
        if wanted <= 0 or not names:
            then(max(0, wanted), "")
            return
        try:
            moved = self._move(names.pop())
        except TargetError as error:
            self._note_failure(error)
            then(wanted, str(error))
            return
        # Whoever wants something back need not wait for all of them.
        self._chores.do(self._go_on, wanted - moved, names, then)

    def _movable(self) -> list[str]:
        """Segments on disk, the coldest last."""
        found: list[tuple[int, str]] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                parts = parse_segment(entry.name)
                if parts is not None and parts[0] != self.spared:
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        found.sort(reverse=True)
        return [name for _, name in found]

    def _move(self, name: str) -> int:
        """The bytes that came free."""
        path = self._folder / name
        try:
            taken = path.stat().st_blocks * _BLOCK
            length = path.stat().st_size
            if not self._may_move(name):
                return 0
            self._note()
            self._target.put(path, name)
        except FileNotFoundError:
            return 0
        self._clear_garbage()
        self._failing = False
        with self._lock:
            self._away[name] = length
        try:
            path.unlink()
        except FileNotFoundError:
            self._remove(name)
        return taken

    def _may_move(self, name: str) -> bool:
        parts = parse_segment(name)
        assert parts is not None
        try:
            fd = locks.open_lock_file(self._directory / lock_file(parts[0]), create=False)
        except FileNotFoundError:
            return False
        try:
            return is_spilled(fd, parts[1]) and not locks.is_held(fd, *segment_range(parts[1]))
        finally:
            os.close(fd)

    def _note(self) -> None:
        """From now on there is something to clear."""
        if not self._noted:
            note_remote(self._session_dir, self._target.url)
            self._noted = True
            _log.info("the disk is short: spilled objects go on to %s", self._target.url)

    def _note_failure(self, error: TargetError) -> None:
        if not self._failing and not self._stopped:
            _log.warning("spilled objects cannot go on: %s", error)
        self._failing = True

    # --- in the thread: bringing back, and removing ----------------------------------------------------------------

    def _bring(self, name: str, answer: Answer) -> None:
        error = f"InternalError: {name} could not be brought back"
        try:
            error = self._get(name)
        finally:
            answer(error)

    def _get(self, name: str) -> str:
        path = self._folder / name
        length = self.length_of(name)
        if length is None:
            return HERE if path.exists() else f"ObjectFreedError: {name} is nowhere"
        half = self._folder / f".{name}"
        try:
            self._make_way(length)
            self._target.get(name, half, length)
            os.rename(half, path)
        except TargetError as error:
            self._note_failure(error)
            return (
                f"SpillTargetError: an object that was spilled is not lost, but cannot be brought back now: {error}. Try again when "
                "the target can be reached"
            )
        except OSError as error:
            return (
                f"OutOfDiskError: an object that was spilled to {self._target.url} cannot be brought back to {self._folder}: "
                f"{error.strerror or error}. Drop references to large objects, or make room there"
            )
        self._remove(name)
        return HERE

    def _make_way(self, length: int) -> None:
        """Move others for one that comes back. If that does not do, it comes all the same, as long as the disk takes it."""
        short = self._shortage(length)
        names = self._movable() if short > 0 else []
        while short > 0 and names:
            try:
                short -= self._move(names.pop())
            except TargetError as error:
                self._note_failure(error)
                return

    def _forget(self, names: list[str]) -> None:
        for name in names:
            if self.length_of(name) is not None:
                self._remove(name)
            # It may have been brought back when whoever has freed it did not find it.
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def _remove(self, name: str) -> None:
        with self._lock:
            self._away.pop(name, None)
        self._garbage.add(name)
        self._clear_garbage()

    def _clear_garbage(self) -> None:
        for name in list(self._garbage):
            try:
                self._target.remove(name)
            except TargetError as error:
                # With the next one, or with the session.
                self._note_failure(error)
                return
            self._garbage.discard(name)
