"""The journal: what goes with the next commit goes with it, before what was written later, and is no reason for one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.control.journal import Journal
from shoal.control.storage import Write
from shoal.control.storage.memory import MemoryStorage


class Watched(MemoryStorage):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[Write]] = []

    def commit(self, writes: Sequence[Write]) -> None:
        self.commits.append(list(writes))


def test_small_change_waits_for_company() -> None:
    async def scenario() -> None:
        storage, done = Watched(), []
        journal = Journal(storage, lambda error: None)
        journal.write_with_next("t", b"small", None)
        journal.then(lambda: done.append("read"))
        assert not journal.dirty
        journal.flush()
        assert (done, storage.commits) == (["read"], [])
        journal.write("t", b"large", b"1")
        assert journal.dirty
        journal.flush()
        journal.flush()
        assert storage.commits == [[Write("t", b"small", None), Write("t", b"large", b"1")]]

    asyncio.run(scenario())
