"""Storage in one SQLite file: the default of a head that should survive its own restart.

::

    event loop:  commit(A) commit(B) commit(C) ──► queue            futures done ◄── call_soon_threadsafe
                                                     │                                    ▲
    own thread:                     takes all ───────┴──► one transaction, one fsync ─────┘

Guarantees: what is acknowledged survives the death of the process, of the system and of the power. The file is in WAL mode
with synchronous=FULL: the log is synced before a transaction counts as committed. (NORMAL, which many choose with WAL, syncs only at
checkpoints: the file stays sound, but the last acknowledged commits may be missing after a power failure.) One sync costs
milliseconds, so everything queued while the last one ran becomes one transaction: *group commit*. The loop never waits for a
disk.

One control store at a time: the file is locked as long as it is open (locking_mode=EXCLUSIVE), and the kernel frees the lock of
whoever dies. With it SQLite needs no shared memory file beside the log, so that network file systems with honest locks and syncs
will do too. The file belongs to its user alone (0600), and what SQLite puts beside it takes the same mode.

A full disk is waited out for `retry_s`. Any other failure of the disk is final: after a failed sync nobody knows what is on it,
and only a fresh start, which reads it again, can tell.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from shoal.control.storage import (
    FAILED,
    OK,
    StorageError,
    StorageInUse,
    StorageState,
    StorageUnavailable,
    Tables,
    Write,
)
from shoal.errors import InternalError

SCHEMA: Final = 1
"""Raised by any change that an older shoal must not touch."""

APPLICATION_ID: Final = 0x73686F6C
"""Marks the file as ours: the letters "shol" in SQLite's header."""

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0

_CREATE: Final = (
    # An ordinary table with an index, not WITHOUT ROWID: values may be megabytes, which do not belong into a tree of keys.
    "CREATE TABLE entries (tbl TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (tbl, key))"
)
_SET: Final = (
    "INSERT INTO entries (tbl, key, value) VALUES (?, ?, ?) "
    "ON CONFLICT (tbl, key) DO UPDATE SET value = excluded.value"
)
_DELETE: Final = "DELETE FROM entries WHERE tbl = ? AND key = ?"


class _Commit(NamedTuple):
    writes: Sequence[Write]
    durable: asyncio.Future[None]


class SqliteStorage:
    """See the module's docstring. `retry_s` is how long a full disk is waited out."""

    def __init__(self, path: str | Path, *, retry_s: float = 60.0) -> None:
        self.state = StorageState()
        self._path = Path(path)
        self._retry_s = retry_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        # Between the loop and the thread; all three belong to the condition.
        self._changed = threading.Condition()
        self._queue: list[_Commit] = []
        self._closing = False
        self._failure: StorageError | None = None
        self._connection: sqlite3.Connection | None = None

    # --- the event loop's side -----------------------------------------------------------------------------------

    async def load(self) -> Tables:
        if self._loop is not None:
            raise InternalError(f"the storage {self._path} was loaded twice")
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Tables] = self._loop.create_future()
        ended: asyncio.Future[None] = self._loop.create_future()
        # A daemon, so that a process whose loop died without `close` can end: what is durable is durable.
        thread = threading.Thread(
            target=self._serve, args=(loaded, ended), name="shoal-storage", daemon=True
        )
        thread.start()
        self._thread, self._ended = thread, ended
        try:
            return await loaded
        except BaseException:
            # Cancelled, or refused. The thread is on its way out, or must be.
            await self.close()
            raise

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        if self._loop is None:
            raise InternalError(f"the storage {self._path} was not loaded before the first commit")
        durable: asyncio.Future[None] = self._loop.create_future()
        with self._changed:
            if self._closing:
                raise InternalError(f"a commit came after the storage {self._path} was closed")
            if self._failure is None:
                self._queue.append(_Commit(writes, durable))
                self._changed.notify()
                return durable
        durable.set_exception(self._failure)
        return durable

    async def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None and self._ended is not None:
            # The last that it says, after which it has nothing to do but to end.
            await asyncio.shield(self._ended)
            self._thread.join()

    # --- the thread's side ---------------------------------------------------------------------------------------

    def _serve(self, loaded: asyncio.Future[Tables], ended: asyncio.Future[None]) -> None:
        connection: sqlite3.Connection | None = None
        commits: list[_Commit] = []
        try:
            connection = self._connection = _open(self._path)
            self._in_loop(_succeed, [loaded], _read(connection, self._path))
            while commits := self._take():
                self._write(connection, commits)
                self._in_loop(_succeed, [commit.durable for commit in commits], None)
        except StorageError as error:
            self._give_up(error, loaded, commits)
        except Exception as error:  # noqa: BLE001 - a thread that dies in silence would leave its futures undone for ever
            unforeseen = StorageError(f"the storage {self._path} failed: {error!r}")
            unforeseen.__cause__ = error
            self._give_up(unforeseen, loaded, commits)
        finally:
            if connection is not None:
                # The lock goes with it, and the log is moved into the file.
                connection.close()
            self._in_loop(_succeed, [ended], None)

    def _give_up(
        self, error: StorageError, loaded: asyncio.Future[Tables], commits: list[_Commit]
    ) -> None:
        with self._changed:
            self._failure = error
            commits = commits + self._queue
            self._queue = []
        self._in_loop(self.state.become, f"{FAILED}{error}")
        self._in_loop(_fail, [loaded, *(commit.durable for commit in commits)], error)

    def _take(self) -> list[_Commit]:
        """Everything that waits; nothing when it is time to end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            commits, self._queue = self._queue, []
            return commits

    def _write(self, connection: sqlite3.Connection, commits: list[_Commit]) -> None:
        """One transaction with all of them; again and again while the disk is full, for as long as is allowed."""
        # What is written twice in one group is written once.
        last = {(w.table, w.key): w.value for commit in commits for w in commit.writes}
        deadline = time.monotonic() + self._retry_s
        pause = _FIRST_PAUSE_S
        while (error := _transact(connection, last)) is not None:
            text = f"{self._path}: {error}"
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise StorageError(
                    f"the storage cannot be written ({text}). What was acknowledged is in the file: start the head "
                    "again when the disk is well"
                ) from error
            self._in_loop(self.state.become, f"retrying: {text}")
            with self._changed:
                closing = self._changed.wait_for(lambda: self._closing, pause)
            if closing or time.monotonic() >= deadline:
                raise StorageUnavailable(
                    f"the storage is full ({text}), {_until(closing, self._retry_s)}. What was acknowledged is in "
                    "the file: make room and start the head again"
                ) from error
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        self._in_loop(self.state.become, OK)

    def _in_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        assert loop is not None
        try:
            loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop ended without `close`. Nobody is left who could be told.
            if not loop.is_closed():
                raise


def _until(closing: bool, retry_s: float) -> str:
    return "and still was when the head ended" if closing else f"and has been for {retry_s:g} s"


def _succeed(futures: list[asyncio.Future[Any]], result: Any) -> None:
    for future in futures:
        if not future.done():
            future.set_result(result)


def _fail(futures: list[asyncio.Future[Any]], error: StorageError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


# --- the file -------------------------------------------------------------------------------------------------------


def _transact(
    connection: sqlite3.Connection, last: dict[tuple[str, bytes], bytes | None]
) -> sqlite3.Error | None:
    """Write all of it and sync, or nothing: then the reason."""
    try:
        connection.execute("BEGIN")
        connection.executemany(_DELETE, [key for key, value in last.items() if value is None])
        connection.executemany(
            _SET, [(*key, value) for key, value in last.items() if value is not None]
        )
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return error
    return None


def _open(path: Path) -> sqlite3.Connection:
    """The file, ours and locked.

    Raises:
        StorageError: it cannot be; the text says why.
    """
    try:
        _make_private(path)
    except OSError as error:
        raise StorageError(_why_not(path, error)) from error
    # The thread alone uses the connection. Not checked, because tests look in while it waits; SQLite serializes.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # Before anything is read: with the lock ours from the beginning, SQLite keeps the index of the log in memory.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StorageError(
                f"the storage {path} cannot keep a log beside it (its journal mode stays {mode!r}): name a file on "
                "another file system"
            )
        connection.execute("PRAGMA synchronous=FULL")
        # After a burst the log gives its room back.
        connection.execute(f"PRAGMA journal_size_limit={64 * 1024 * 1024}")
        # Takes the lock for good, also where there is nothing to write.
        connection.execute("BEGIN IMMEDIATE")
        _check_schema(connection, path)
        connection.execute("COMMIT")
    except StorageError:
        connection.close()
        raise
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageInUse(
                f"the storage {path} is used by another control store that lives: stop it (`shoal stop`), or give this "
                "one a file of its own"
            ) from error
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StorageError(_foreign(path, "is not an SQLite database")) from error
        raise StorageError(f"the storage {path} cannot be opened: {error}") from error
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Make the table in an empty file; of any other, see that it is ours and that we understand it."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (things,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == 0 and version == 0 and things == 0:
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA}")
    elif application != APPLICATION_ID:
        raise StorageError(_foreign(path, "is an SQLite database of another program"))
    elif version > SCHEMA:
        raise StorageError(
            f"the storage {path} was written by a newer shoal (schema {version}; this one knows {SCHEMA}): use that "
            "one, or another file"
        )


def _read(connection: sqlite3.Connection, path: Path) -> Tables:
    tables: Tables = {}
    try:
        for table, key, value in connection.execute("SELECT tbl, key, value FROM entries"):
            tables.setdefault(table, {})[key] = value
    except sqlite3.Error as error:
        raise StorageError(
            f"the storage {path} cannot be read: {error}. If the file is damaged, take a copy of it away and restore it "
            "from a backup, or begin with a new one"
        ) from error
    return tables


def _make_private(path: Path) -> None:
    """The file, there and with mode 0600. (Never opened if it exists: closing it would drop the locks of a storage of this
    process, by the rules of POSIX.)"""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file") from None
        if stat.S_IMODE(mode) != 0o600:
            path.chmod(0o600)
        if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
    else:
        # The name of the new file is to survive the power, too.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _why_not(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"the storage {path} cannot be made: there is no folder {path.parent}. Make it, or name another file"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return (
            f"the storage {path} cannot be written: {reason}. SQLite must be able to write the file and to make "
            f"others beside it: give this user the folder {path.parent}, or name another file"
        )
    return f"the storage {path} cannot be used: {reason}. Name another file"


def _foreign(path: Path, what: str) -> str:
    return f"{path} {what}, and was left alone: name another file for the storage"
