"""One arena and one reader used by many threads at once, for two seconds at most."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from shoal.store import Arena, Location, QuotaExhausted, Reader, copy_into
from tests.store.conftest import MB, bytes_in_files

QUOTA = 48 * MB


@pytest.mark.parametrize("seed", range(2))
def test_threads_never_see_the_bytes_of_others(directory: Path, seed: int) -> None:
    arena = Arena(directory, "t", quota_bytes=QUOTA)
    reader = Reader(directory, idle_mappings=4)
    deadline = time.monotonic() + 1.0
    failures: list[BaseException] = []
    done: list[int] = []

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        held: list[tuple[Location, bytes]] = []
        # Views may outlive their objects.
        views: list[tuple[memoryview, bytes]] = []
        rounds = 0
        try:
            while time.monotonic() < deadline:
                rounds += 1
                size = rng.choice((100, 5000, 200_000, MB, 3 * MB))
                mark = bytes([number, rounds & 255]) * 8
                try:
                    block = arena.create(size)
                except QuotaExhausted:
                    views.clear()
                    if held:
                        arena.free(held.pop()[0])
                    continue
                content = (mark * (size // 16 + 1))[:size]
                copy_into(block.buffer, memoryview(content))
                held.append((block.location, content))
                del block
                location, content = rng.choice(held)
                views.append(((arena, reader)[rounds % 2].view(location), content))
                if len(held) > 3:
                    location, content = held.pop(rng.randrange(len(held)))
                    arena.free(location)
                if len(views) > 4:
                    view, content = views.pop(rng.randrange(len(views)))
                    assert view == content
                if rounds % 50 == 0:
                    arena.grant(arena.reclaim(4 * MB))
        except BaseException as error:  # noqa: BLE001 - it is raised again by the test
            failures.append(error)
        finally:
            for location, _ in held:
                arena.free(location)
            done.append(rounds)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert min(done) > 0
    arena.blocks()  # looks at all that is in quarantine again
    stats = arena.stats()
    assert stats.live_blocks == stats.live_bytes == stats.quarantined_blocks == 0
    assert stats.quota_bytes == QUOTA
    assert bytes_in_files(directory) == stats.backed_bytes <= QUOTA
    arena._slabs.check()
    assert reader.stats().viewed_blocks == 0
    assert arena.reclaim(1 << 60) == QUOTA
    reader.close()
    arena.close(unlink=True)
