"""What only the SQLite storage does: files, locks, full disks, and nothing lost by whoever is killed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.control.storage import (
    StorageError,
    StorageInUse,
    StorageUnavailable,
    Tables,
    Write,
)
from shoal.control.storage.sqlite import APPLICATION_ID, SqliteStorage
from shoal.errors import InternalError
from tests.contract.kills import kill_while_writing
from tests.contract.places import until


def load_once(path: Path) -> Tables:
    async def scenario() -> Tables:
        storage = SqliteStorage(path)
        try:
            return await storage.load()
        finally:
            await storage.close()

    return asyncio.run(scenario())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_acknowledged_is_lost_by_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    for round_number in range(3):
        # Each round begins after what the one before has left, or has told nobody of.
        before = len(load_once(path).get("t", {}))
        last = kill_while_writing(f"sqlite://{path}", "c", after=50 + round_number)
        durable = max(last, before - 1)
        tables = load_once(path)
        kept = {int(key) for key in tables["t"]}
        # All that was said to be durable, and no gap in what came after it.
        assert kept == set(range(len(kept)))
        assert len(kept) > durable
        assert tables["t"].keys() == tables["other"].keys()


def test_files_belong_to_their_user_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "control.db"
        storage = SqliteStorage(path)
        await storage.load()
        durable = storage.commit([Write("t", b"k", b"v")])
        await durable
        check_modes()
        await storage.close()

    def check_modes() -> None:
        files = list(tmp_path.iterdir())
        assert len(files) > 1
        assert {mode_of(file) for file in files} == {0o600}

    outer = os.umask(0)
    try:
        asyncio.run(scenario())
    finally:
        os.umask(outer)
    assert [file.name for file in tmp_path.iterdir()] == ["control.db"]
    (tmp_path / "control.db").chmod(0o644)
    load_once(tmp_path / "control.db")
    assert mode_of(tmp_path / "control.db") == 0o600


def test_another_process_cannot_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    program = (
        "import asyncio, sys\n"
        "from shoal.control.storage.sqlite import SqliteStorage\n"
        "asyncio.run(SqliteStorage(sys.argv[1]).load())\n"
    )

    async def scenario() -> None:
        storage = SqliteStorage(path)
        await storage.load()
        # A loaded storage that has written nothing yet holds the lock, too.
        result = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program, str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "is used by another control store that lives" in result.stderr
        # And a refused neighbour in this process does not drop it: closing any descriptor of a file would.
        with pytest.raises(StorageInUse):
            await SqliteStorage(path).load()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await asyncio.to_thread(peek, path)
        await storage.close()

    asyncio.run(scenario())


def test_a_commit_is_synced_before_it_counts(tmp_path: Path) -> None:
    """A power failure cannot be had in a test; what SQLite does about one is settled by these two."""

    async def scenario() -> None:
        storage = SqliteStorage(tmp_path / "control.db")
        await storage.load()
        assert storage._connection is not None
        settings = [
            storage._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
        assert settings == ["wal", 2]
        await storage.close()

    asyncio.run(scenario())


def peek(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=0)
    try:
        connection.execute("SELECT * FROM entries").fetchall()
    finally:
        connection.close()


def refusal(path: Path) -> str:
    with pytest.raises(StorageError) as refused:
        load_once(path)
    return str(refused.value)


def test_a_file_that_cannot_be_used_is_refused_by_its_reason(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'none'}" in refusal(tmp_path / "none" / "control.db")
    assert "it is no regular file" in refusal(tmp_path)
    text = tmp_path / "text"
    text.write_text("This is a text, and a long one: SQLite looks at the first hundred bytes." * 20)
    assert "is not an SQLite database, and was left alone" in refusal(text)
    assert text.read_text().startswith("This is")


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    assert "is an SQLite database of another program" in refusal(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    connection.close()


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    load_once(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.execute("PRAGMA user_version=7")
    connection.close()
    assert "was written by a newer shoal (schema 7; this one knows 1)" in refusal(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    # Root may write everywhere; then the child becomes somebody else, who must be able to come here.
    for parent in folder.relative_to("/tmp").parents if os.geteuid() == 0 else ():
        Path("/tmp", parent).chmod(0o755 if parent.name else 0o1777)
    program = (
        "import asyncio, sys, os\n"
        "from shoal.control.storage.sqlite import SqliteStorage\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "asyncio.run(SqliteStorage(sys.argv[1]).load())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(folder / "control.db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "cannot be written: Permission denied" in result.stderr
    assert f"give this user the folder {folder}" in result.stderr


def limit_pages(storage: SqliteStorage, pages: int) -> None:
    """A disk that is full as far as SQLite can see: the storage's thread sits out its pause meanwhile."""
    assert storage._connection is not None
    storage._connection.execute(f"PRAGMA max_page_count={pages}")


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard: list[str] = []
        storage = SqliteStorage(tmp_path / "control.db", retry_s=60)
        await storage.load()
        storage.state.listen(heard.append)
        limit_pages(storage, 10)
        first = storage.commit([Write("t", b"k", bytes(1_000_000))])
        second = storage.commit([Write("t", b"k2", b"small")])
        assert "full" in await until(storage.state, "retrying: ")
        assert not first.done()
        assert not second.done()
        limit_pages(storage, 100_000)
        async with asyncio.timeout(20):
            await asyncio.gather(first, second)
        await storage.close()
        assert heard[-1] == "ok"

    asyncio.run(scenario())
    assert load_once(tmp_path / "control.db")["t"].keys() == {b"k", b"k2"}


def test_a_disk_that_stays_full_fails_the_storage_and_keeps_what_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = SqliteStorage(tmp_path / "control.db", retry_s=0.1)
        await storage.load()
        await storage.commit([Write("t", b"kept", b"v")])
        limit_pages(storage, 10)
        lost = storage.commit([Write("t", b"lost", bytes(1_000_000)), Write("t", b"kept", None)])
        async with asyncio.timeout(20):
            with pytest.raises(StorageUnavailable, match=r"is full .* for 0\.1 s.*make room"):
                await lost
        assert storage.state.text.startswith("failed: ")
        with pytest.raises(StorageUnavailable):
            await storage.commit([Write("t", b"late", b"v")])
        await storage.close()

    asyncio.run(scenario())
    assert load_once(tmp_path / "control.db") == {"t": {b"kept": b"v"}}


def test_closing_does_not_wait_for_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = SqliteStorage(tmp_path / "control.db", retry_s=3600)
        await storage.load()
        limit_pages(storage, 10)
        lost = storage.commit([Write("t", b"lost", bytes(1_000_000))])
        async with asyncio.timeout(20):
            await storage.close()
        with pytest.raises(StorageUnavailable, match="still was when the head ended"):
            await lost

    asyncio.run(scenario())


def test_the_loop_never_waits_for_the_disk(tmp_path: Path) -> None:
    """Commits queued while one is written become one transaction: fewer syncs than commits."""

    async def scenario() -> None:
        storage = SqliteStorage(tmp_path / "control.db")
        await storage.load()
        assert storage._connection is not None
        transactions = 0

        def trace(statement: str) -> None:
            nonlocal transactions
            transactions += statement == "COMMIT"

        storage._connection.set_trace_callback(trace)
        futures = [storage.commit([Write("t", b"%d" % n, b"v")]) for n in range(2000)]
        assert not any(future.done() for future in futures)
        await asyncio.gather(*futures)
        assert transactions < 100
        await storage.close()

    asyncio.run(scenario())


def test_misuse_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = SqliteStorage(tmp_path / "control.db")
        with pytest.raises(InternalError, match="not loaded"):
            storage.commit([])
        await storage.load()
        with pytest.raises(InternalError, match="twice"):
            await storage.load()
        await storage.close()
        with pytest.raises(InternalError, match="closed"):
            storage.commit([])

    asyncio.run(scenario())
