"""Random lives of blocks against a model that only remembers what it was given.

The rules of the model: live blocks are disjoint and keep their content; what anybody views keeps its content, freed or
not; files never have more bytes than were granted and not given back.
"""

from __future__ import annotations

import errno
import random
import secrets
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from shoal.store import (
    Arena,
    Block,
    Location,
    QuotaExhausted,
    Reader,
    remove_session,
    shm_directory,
    spilling,
)
from tests.store.conftest import bytes_in_files

KB = 1 << 10
# Small limits, so that a short run meets every boundary.
LARGE, SLAB, MOST = 32 * KB, 256 * KB, 4096 * KB


def refuse(folder: Path, wanted: int, disk_fraction: float) -> NoReturn:
    """As `check_disk` on a full disk."""
    raise OSError(errno.ENOSPC, "no room")


class ArenaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = shm_directory(f"test-{secrets.token_hex(4)}")
        self.disk = Path(tempfile.mkdtemp())
        self.arena = Arena(
            self.directory, "m", spill_directory=self.disk, large_bytes=LARGE, slab_bytes=SLAB
        )
        self.reader = Reader(self.directory, self.disk, idle_mappings=4)
        self.granted = 0
        self.seeds = 0
        self.live: dict[Location, bytes] = {}

    blocks = Bundle("blocks")
    views = Bundle("views")

    @initialize(quota=st.sampled_from([0, 64 * KB, 512 * KB]))
    def begin(self, quota: int) -> None:
        self.arena.grant(quota)
        self.granted = quota

    @rule(
        target=blocks,
        size=st.one_of(
            st.integers(0, 2 * KB),
            st.integers(LARGE // 2, LARGE * 2),
            st.sampled_from([100 * KB, 128 * KB, 130 * KB, 300 * KB]),
        ),
        ask=st.booleans(),
    )
    def create(self, size: int, ask: bool) -> Any:
        try:
            block = self.arena.create(size)
        except QuotaExhausted as error:
            if not ask or self.granted > MOST:
                return multiple()
            self.arena.grant(error.needed_bytes)
            self.granted += error.needed_bytes
            block = self.arena.create(size)
        return self.fill(block, size)

    def fill(self, block: Block, size: int) -> Location:
        self.seeds += 1
        content = random.Random(self.seeds).randbytes(size)
        block.buffer[:] = content
        assert block.location.size == size
        assert block.location not in self.live
        self.live[block.location] = content
        return block.location

    @rule(target=blocks, size=st.sampled_from([0, 10, 100 * KB]))
    def create_on_disk(self, size: int) -> Location:
        return self.fill(self.arena.create(size, on_disk=True), size)

    @rule(wanted=st.sampled_from([1, 100 * KB, MOST]))
    def spill(self, wanted: int) -> None:
        before = self.arena.stats()
        result = self.arena.spill(wanted)
        assert not result.error
        self.granted -= result.freed
        after = self.arena.stats()
        assert before.backed_bytes - after.backed_bytes == result.freed
        assert after.spilled_bytes - before.spilled_bytes <= result.written

    @rule(wanted=st.sampled_from([1, 100 * KB, MOST]))
    def spill_to_a_full_disk(self, wanted: int) -> None:
        before = self.arena.stats()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spilling, "check_disk", refuse)
            result = self.arena.spill(wanted)
        assert result.freed == result.written == 0
        assert self.arena.stats() == before

    @rule(target=views, location=blocks, own=st.booleans())
    def look(self, location: Location, own: bool) -> tuple[memoryview, bytes]:
        return (self.arena if own else self.reader).view(location), self.live[location]

    @rule(pair=consumes(views))
    def stop_looking(self, pair: tuple[memoryview, bytes]) -> None:
        view, content = pair
        assert view == content
        view.release()

    @rule(location=consumes(blocks))
    def free(self, location: Location) -> None:
        self.arena.free(location)
        del self.live[location]

    @rule(wanted=st.sampled_from([4 * KB, 100 * KB, MOST]))
    def reclaim(self, wanted: int) -> None:
        self.granted -= self.arena.reclaim(wanted)

    @invariant()
    def accounts_agree(self) -> None:
        stats = self.arena.stats()
        assert bytes_in_files(self.directory) == stats.backed_bytes <= stats.quota_bytes
        if all(self.arena.path_of(location).parent != self.disk for location in self.live):
            assert list(self.disk.iterdir()) == []
        assert stats.quota_bytes == self.granted
        assert stats.live_blocks == len(self.live)
        assert stats.live_bytes + stats.spilled_bytes == sum(map(len, self.live.values()))
        assert stats.live_bytes + stats.warm_bytes + stats.quarantined_bytes <= stats.backed_bytes
        self.arena._slabs.check()

    @invariant()
    def live_blocks_are_disjoint_and_whole(self) -> None:
        ends: dict[str, int] = {}
        for location in sorted(self.live, key=lambda at: (at.segment, at.offset)):
            assert location.offset >= ends.get(location.segment, 0)
            ends[location.segment] = location.offset + max(1, location.size)
        for location, content in self.live.items():
            assert self.arena.view(location) == content

    def teardown(self) -> None:
        self.arena.close(unlink=True)
        assert list(self.directory.iterdir()) == []
        assert list(self.disk.iterdir()) == []
        self.reader.close()
        remove_session(self.directory)
        self.disk.rmdir()


class TestArenaMachine(ArenaMachine.TestCase):  # type: ignore[misc,valid-type]  # hypothesis makes the base at run time
    settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
