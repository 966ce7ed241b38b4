"""Very many objects, and very large ones, between two nodes with small stores.

As in `tests/api/test_many.py`, nothing looks at a clock: what would grow with the square is counted.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import shoal
from shoal.core.references import BATCH
from shoal.messages.peer import Borrow, Borrowed, Release
from shoal.messages.transfer import Pull, PullDone
from shoal.runtime import current_process
from shoal.testing import Cluster
from tests.api.gates import wait_until
from tests.api.test_many import counted
from tests.conftest import checked_at_the_end

MB: Final = 1 << 20
CAPACITY: Final = 20 * MB
SIZE: Final = 150_000
MANY: Final = 400
"""Three times as many bytes as a store has."""
PATIENCE_S: Final = 60.0
HERE: Final = {"node0": 1}
THERE: Final = {"node1": 1}


@pytest.fixture(scope="module")
def disks(
    request: pytest.FixtureRequest, session_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Path]]:
    """Where two nodes spill: the driver's, and the other."""
    folders = [tmp_path_factory.mktemp(f"disk{i}") for i in range(2)]
    options = [
        {
            "num_cpus": 2,
            "resources": {f"node{i}": 100},
            "object_store_memory": CAPACITY,
            "object_spilling_directory": str(folders[i]),
        }
        for i in range(2)
    ]
    checked = checked_at_the_end(request.config, session_root)
    with (
        checked,
        Cluster(initialize_head=False, system_config={"spill_fallback_s": 0.05}) as cluster,
    ):
        cluster.add_nodes(options)
        with cluster.connect():
            yield folders


@pytest.fixture(autouse=True)
def nothing_is_left(disks: list[Path]) -> Iterator[None]:
    yield
    # What was interrupted is in the frames of a traceback.
    gc.collect()
    table = current_process.require().objects
    wait_until(lambda: len(table.entries) <= 1, "the driver knows of no objects any more")
    wait_until(lambda: not files(disks), "nothing is left on disk")


def files(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@shoal.remote
def make(first: int, count: int) -> list[Any]:
    return [
        shoal.put(np.full(SIZE, number % 251, np.uint8)) for number in range(first, first + count)
    ]


@shoal.remote
def check(first: int, *arrays: Any) -> int:
    return sum(bool((array == number % 251).all()) for number, array in enumerate(arrays, first))


@shoal.remote
def check_list(first: int, refs: list[Any]) -> int:
    arrays = shoal.get(refs, timeout=PATIENCE_S)
    return sum(bool((array == number % 251).all()) for number, array in enumerate(arrays, first))


@contextmanager
def told() -> Iterator[Counter[type]]:
    """What this process says to its daemon."""
    node = current_process.require().node
    found: Counter[type] = Counter()
    send = node.send_locked

    def count(message: Any) -> None:
        found[type(message)] += 1
        send(message)

    node.send_locked = count  # type: ignore[method-assign]  # put back below
    try:
        yield found
    finally:
        node.send_locked = send  # type: ignore[method-assign]  # as it was


@pytest.mark.parametrize("where", [HERE, THERE], ids=["of this node", "of the other"])
def test_more_objects_than_fit_in_one_get_and_as_arguments(where: dict[str, float]) -> None:
    refs = shoal.get(make.options(resources=where).remote(0, MANY), timeout=PATIENCE_S)
    with told() as messages:
        arrays = shoal.get(refs, timeout=PATIENCE_S)
        assert [int(array[-1]) for array in arrays] == [n % 251 for n in range(MANY)]
        # Each is asked for once, and let go of once.
        assert messages[Pull] == messages[PullDone] == (MANY if where is THERE else 0)
    del arrays
    for resources in (HERE, THERE):
        task = check.options(resources=resources).remote(0, *refs)
        assert shoal.get(task, timeout=PATIENCE_S) == MANY
        task = check_list.options(resources=resources).remote(0, refs)
        assert shoal.get(task, timeout=PATIENCE_S) == MANY
    ready, rest = shoal.wait(refs, num_returns=MANY, timeout=PATIENCE_S)
    assert (len(ready), rest) == (MANY, [])


def get_and_wait(refs: list[Any], sender: threading.Thread) -> None:
    shoal.get(refs, timeout=PATIENCE_S)
    # Should it have been quicker, the interrupt comes here.
    sender.join()


def test_an_interrupt_in_the_middle_leaves_nothing_on_its_way() -> None:
    refs = shoal.get(make.options(resources=THERE).remote(0, MANY), timeout=PATIENCE_S)
    remote = current_process.require().store.remote
    assert remote is not None

    def interrupt() -> None:
        late = time.monotonic() + 5
        while not remote._wishes and time.monotonic() < late:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    for _ in range(3):
        sender = threading.Thread(target=interrupt)
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            get_and_wait(refs, sender)
        sender.join()
        assert remote._wishes == {}
    assert shoal.get(check.remote(0, *refs), timeout=PATIENCE_S) == MANY


@shoal.remote
class Keeper:
    def take(self, box: list[Any]) -> int:
        self.kept = shoal.get(box[0], timeout=PATIENCE_S)
        return len(self.kept)

    def read(self, index: int) -> Any:
        return shoal.get(self.kept[index], timeout=PATIENCE_S)


def test_very_many_references_are_borrowed_at_another_node_and_go_with_the_borrower() -> None:
    many = 3 * BATCH + 1
    keeper = Keeper.options(resources=THERE).remote()
    table = current_process.require().objects
    with counted(Borrow, Release) as messages:
        refs = [shoal.put(number) for number in range(many)]
        box = shoal.put(refs)
        assert shoal.get(keeper.take.remote([box]), timeout=PATIENCE_S) == many
        del refs, box
        assert shoal.get(keeper.read.remote(many - 1), timeout=PATIENCE_S) == many - 1
        assert messages["Borrow"] <= many / BATCH + 3
        assert len(table.entries) > many
    shoal.kill(keeper)
    del keeper
    wait_until(lambda: len(table.entries) <= 1, "all is given up that it borrowed")
    assert table.by_borrower == {}


@shoal.remote
def make_refs(count: int) -> list[Any]:
    return [shoal.put(number) for number in range(count)]


def test_what_another_node_owns_is_acknowledged_in_batches() -> None:
    many = 2 * BATCH
    holder = make_refs.options(resources=THERE).remote(many)
    shoal.wait([holder], timeout=PATIENCE_S, fetch_local=False)
    with counted(Borrowed) as messages:
        refs = shoal.get(holder, timeout=PATIENCE_S)
        again = make_refs.options(resources=THERE)
        assert sum(shoal.get(refs, timeout=PATIENCE_S)) == many * (many - 1) // 2
        assert messages["Borrowed"] <= 3
    del refs, again, holder


@shoal.remote
def add_up(numbers: Any) -> int:
    return int(numbers.sum())


def test_an_object_that_is_larger_than_any_store(disks: list[Path]) -> None:
    numbers = np.arange(3 * CAPACITY // 8, dtype=np.int64)
    expected = int(numbers.sum())
    ref = shoal.put(numbers)
    (file,) = files(disks[:1])
    assert file.stat().st_size > numbers.nbytes
    for resources in (HERE, THERE):
        task = add_up.options(resources=resources).remote(ref)
        assert shoal.get(task, timeout=PATIENCE_S) == expected
    (copy,) = files(disks[1:])
    assert copy.stat().st_size > numbers.nbytes
    view = shoal.get(ref, timeout=PATIENCE_S)
    del ref
    # A view outlives its object, whose file is gone.
    wait_until(lambda: not files(disks), "the object is gone from both disks")
    assert int(view.sum()) == expected
