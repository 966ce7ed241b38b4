"""An object of five gigabytes through stores of two, and a million references, with everything counted at the end.

That takes `--stress-seconds=60` or more, some 15 GB of disk, and a minute or two; with less, it is a twentieth of it. How fast it is,
beside Ray, say the rows `huge-5gb` and `refs-1m` of `bench`.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import shoal
from bench.workloads.large import anonymous_bytes, anonymous_peak
from shoal.runtime import current_process
from shoal.testing import Cluster
from tests.api.gates import wait_until

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]

MB: Final = 10**6
WHOLE_RUN_S: Final = 60.0
PATIENCE_S: Final = 300.0
PARTS: Final = 50
LEAST_DISK: Final = 25_000 * MB


@shoal.remote
def add_up(numbers: Any) -> int:
    part = len(numbers) // PARTS
    return sum(int(numbers[k * part : (k + 1) * part].sum()) for k in range(PARTS)) % 2**64


@contextmanager
def two_nodes(store_bytes: int, folders: list[Path]) -> Iterator[None]:
    options = [
        {
            "num_cpus": 1,
            "resources": {f"node{i}": 1},
            "object_store_memory": store_bytes,
            "object_spilling_directory": str(folder),
        }
        for i, folder in enumerate(folders)
    ]
    with Cluster(initialize_head=False) as cluster:
        cluster.add_nodes(options)
        with cluster.connect():
            yield


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_object_of_five_gigabytes_passes_through_stores_of_two(
    tmp_path: Path, stress_seconds: float
) -> None:
    whole = stress_seconds >= WHOLE_RUN_S and shutil.disk_usage(tmp_path).free > LEAST_DISK
    size, store = (5_000 * MB, 2_000 * MB) if whole else (250 * MB, 100 * MB)
    count = size // 8
    source = tmp_path / "source"
    with open(source, "wb") as file:
        for k in range(PARTS):
            part = count // PARTS
            np.arange(k * part, (k + 1) * part, dtype=np.uint64).tofile(file)
    expected = count * (count - 1) // 2 % 2**64
    folders = [tmp_path / "disk0", tmp_path / "disk1"]
    for folder in folders:
        folder.mkdir()
    with two_nodes(store, folders), anonymous_peak() as peak:
        # Its pages are the system's: the driver has none of its own.
        numbers = np.asarray(np.memmap(source, dtype=np.uint64, mode="r"))
        shoal.get(
            [add_up.options(resources={f"node{i}": 1}).remote(numbers[:PARTS]) for i in (0, 1)]
        )
        before, began = anonymous_bytes(), time.monotonic()
        ref = shoal.put(numbers)
        laps = [f"put {time.monotonic() - began:.1f} s"]
        for i, folder in enumerate(folders):
            began = time.monotonic()
            task = add_up.options(resources={f"node{i}": 1}).remote(ref)
            assert shoal.get(task, timeout=PATIENCE_S) == expected
            laps.append(f"task at node {i} {time.monotonic() - began:.1f} s")
            assert sum(path.stat().st_blocks * 512 for path in files(folder)) >= size
        grown = peak() - before
        print(
            f"{size / 1e9} GB: {', '.join(laps)}; memory beside files: {grown / MB:.0f} MB more at most"
        )
        assert grown < max(100 * MB, size // 20), "nobody had the whole of it in memory of its own"
        del ref
        for folder in folders:
            wait_until(lambda folder=folder: not files(folder), "the object is gone from the disk")
    assert not any(files(folder) for folder in folders)


@shoal.remote(max_concurrency=2)
class Holder:
    def hold(self, box: list[Any]) -> int:
        self.refs = shoal.get(box[0], timeout=PATIENCE_S)
        return len(self.refs)

    def drop(self) -> None:
        self.refs = []

    def known(self) -> int:
        gc.collect()
        return len(current_process.require().objects.entries)

    def read(self, index: int) -> Any:
        return shoal.get(self.refs[index], timeout=PATIENCE_S)


def test_a_million_references_are_borrowed_at_both_nodes_and_given_up(
    tmp_path: Path, stress_seconds: float
) -> None:
    count = 1_000_000 if stress_seconds >= WHOLE_RUN_S else 50_000
    folders = [tmp_path / "disk0", tmp_path / "disk1"]
    for folder in folders:
        folder.mkdir()
    with two_nodes(500 * MB, folders):
        table = current_process.require().objects
        holders = [Holder.options(num_cpus=0, resources={f"node{i}": 1}).remote() for i in (0, 1)]
        known = shoal.get([holder.known.remote() for holder in holders], timeout=PATIENCE_S)
        refs = [shoal.put(number) for number in range(count)]
        box = shoal.put(refs)
        held = [holder.hold.remote([box]) for holder in holders]
        assert shoal.get(held, timeout=PATIENCE_S) == [count, count]
        del refs, box, held
        last = [holder.read.remote(count - 1) for holder in holders]
        assert shoal.get(last, timeout=PATIENCE_S) == [count - 1, count - 1]
        del last
        assert len(table.entries) >= count
        assert sum(len(borrowed) >= count for borrowed in table.by_borrower.values()) == 2
        # One of them ends with all that it has borrowed, the other gives it up.
        shoal.kill(holders.pop())
        shoal.get(holders[0].drop.remote(), timeout=PATIENCE_S)
        wait_until(lambda: len(table.entries) <= 3, "the driver has freed them all", PATIENCE_S)
        assert not table.by_borrower or all(len(b) <= 1 for b in table.by_borrower.values())
        left = shoal.get(holders[0].known.remote(), timeout=PATIENCE_S)
        assert left <= known[0] + 2
