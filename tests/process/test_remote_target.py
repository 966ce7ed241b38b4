"""Clusters whose spilled objects go on to a remote target: they are read, lent, freed, and removed with whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shoal
from shoal.config import load_config
from shoal.exceptions import OutOfDiskError, SpillTargetError
from shoal.runtime.launch import launch_head
from shoal.runtime.session_folder import Session, sweep_dead_sessions
from shoal.testing import Cluster
from tests.api.gates import wait_until
from tests.process.programs import GONE_S, Program, end_of

if TYPE_CHECKING:
    import psutil

MB = 1 << 20
CAPACITY = 40 * MB
SIZE = 3 * MB
SETTINGS = {"spill_local_bytes": 20 * MB, "spill_batch_bytes": 6 * MB, "spill_retry_s": 0.2}

# The target is asked by a process of its own, which may take its time on a busy machine.
PATIENCE_S = 6 * GONE_S


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def array(seed: int, size: int = SIZE) -> Any:
    return np.full(size, seed, dtype=np.uint8)


@shoal.remote
def make(seed: int) -> Any:
    return array(seed)


@shoal.remote
def check(found: Any, seed: int) -> bool:
    return bool((found == seed).all())


@shoal.remote
class Keeper:
    """A process with references."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def pid(self) -> int:
        return os.getpid()

    def make(self, seed: int) -> Any:
        return array(seed)

    def put(self, seeds: list[int]) -> list[Any]:
        return [shoal.put(array(seed)) for seed in seeds]

    def keep(self, refs: list[Any]) -> int:
        self.kept += refs
        return len(self.kept)

    def check(self, seeds: list[int]) -> bool:
        return all(bool((shoal.get(r) == n).all()) for r, n in zip(self.kept, seeds, strict=True))


def start(place: Path, **more: Any) -> None:
    settings = {**SETTINGS, **more}
    shoal.init(
        num_cpus=2,
        object_store_memory=CAPACITY,
        object_spilling_directory=f"file://{place}",
        _system_config=settings,
    )


def test_objects_go_there_and_come_back_and_go_with_their_last_reference(tmp_path: Path) -> None:
    place = tmp_path / "target"
    start(place)
    refs = [shoal.put(array(seed)) for seed in range(15)]
    refs += [make.remote(seed) for seed in range(15, 30)]
    shoal.wait(refs, num_returns=30, timeout=60)
    assert len(files_in(place)) > 5
    for _ in range(2):
        for seed, ref in enumerate(refs):
            assert (shoal.get(ref, timeout=60) == seed).all()
    assert all(shoal.get([check.remote(ref, n) for n, ref in enumerate(refs)], timeout=60))
    del refs[::2], ref
    keeper = Keeper.remote()
    assert shoal.get(keeper.keep.remote(refs)) == 15
    del refs
    # The borrower has the last references.
    assert shoal.get(keeper.check.remote(range(1, 30, 2)), timeout=60)
    del keeper
    wait_until(lambda: not files_in(place), "all of it is freed")
    held = [shoal.put(array(seed)) for seed in range(30)]
    assert len(held) == 30
    assert files_in(place)
    shoal.shutdown()
    assert os.listdir(place) == []


def test_what_a_killed_process_has_left_there_is_read_and_freed(tmp_path: Path) -> None:
    place = tmp_path / "target"
    start(place)
    keeper = Keeper.remote()
    pid = shoal.get(keeper.pid.remote())
    refs = [keeper.make.remote(seed) for seed in range(30)]
    owned = shoal.get(keeper.put.remote(range(10)), timeout=60)
    shoal.wait(refs, num_returns=30, timeout=60)
    assert files_in(place)
    os.kill(pid, signal.SIGKILL)
    # The driver owns these: they are there, wherever they are.
    for seed, ref in enumerate(refs):
        assert (shoal.get(ref, timeout=60) == seed).all()
    del refs, ref, owned
    wait_until(lambda: not files_in(place), "nobody uses any of it")
    shoal.shutdown()


def test_other_nodes_get_what_is_there(tmp_path: Path) -> None:
    options = {"num_cpus": 2, "object_store_memory": CAPACITY}
    place = tmp_path / "target"
    with Cluster(head_node_args=options, system_config=SETTINGS) as cluster:
        other = cluster.add_node(
            **options, resources={"other": 4}, object_spilling_directory=f"file://{place}"
        )
        cluster.connect()
        there = make.options(resources={"other": 1})
        refs = [there.remote(seed) for seed in range(30)]
        shoal.wait(refs, num_returns=30, timeout=60, fetch_local=False)
        assert files_in(place)
        for seed, ref in enumerate(refs):
            assert (shoal.get(ref, timeout=60) == seed).all()
        del refs, ref
        wait_until(lambda: not files_in(place), "all of it is freed")
        refs = [there.remote(seed) for seed in range(30)]
        shoal.wait(refs, num_returns=30, timeout=60, fetch_local=False)
        assert files_in(place)
        cluster.remove_node(other)
        wait_until(lambda: os.listdir(place) == [], "it goes with its node", PATIENCE_S)


def test_a_target_that_cannot_be_reached_stops_spilling_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "target"
    # A file where the folder should be.
    place.touch()
    start(place, store_full_timeout_s=1.0, spill_fallback_s=0.1)
    refs: list[Any] = []
    with pytest.raises(OutOfDiskError, match=r"(?s)file://.*(NotADirectory|FileExists)Error"):
        put_all(refs)
    assert len(refs) > CAPACITY // SIZE
    for seed, ref in enumerate(refs):
        assert (shoal.get(ref, timeout=60) == seed).all()
    place.unlink()
    # It is tried again after a while.
    wait_until(lambda: can_put_all(refs), "there is room", PATIENCE_S)
    assert files_in(place)
    # Gone again: what is there cannot be read, and is not lost.
    place.rename(tmp_path / "away")
    place.touch()
    missing = [seed for seed, ref in enumerate(refs) if not can_get(ref)]
    assert missing
    place.unlink()
    (tmp_path / "away").rename(place)
    for seed, ref in enumerate(refs):
        assert (shoal.get(ref, timeout=60) == seed).all()
    del ref
    refs.clear()
    wait_until(lambda: not files_in(place), "all of it is freed")
    shoal.shutdown()


def put_all(refs: list[Any]) -> None:
    """So many that some have to go there."""
    while len(refs) < 40:
        refs.append(shoal.put(array(len(refs))))


def can_put_all(refs: list[Any]) -> bool:
    try:
        put_all(refs)
    except OutOfDiskError:
        return False
    return True


def can_get(ref: Any) -> bool:
    try:
        shoal.get(ref, timeout=60)
    except SpillTargetError:
        return False
    return True


# --- kills -------------------------------------------------------------------------------------------------------------

HOLDER = """
import numpy as np
import shoal

context = shoal.init(
    num_cpus=2,
    object_store_memory={capacity},
    object_spilling_directory="file://" + {place},
    _system_config={settings},
)
say_session(context)
refs = [shoal.put(np.full({size}, seed, dtype=np.uint8)) for seed in range(30)]
say("full")
time.sleep(1000)
"""


def holder(folder: Path, place: Path) -> Program:
    return Program(
        folder,
        HOLDER.format(size=SIZE, capacity=CAPACITY, place=repr(str(place)), settings=SETTINGS),
    )


def named(family: list[psutil.Process], name: str) -> psutil.Process:
    (found,) = [process for process in family if process.name() == name]
    return found


@pytest.mark.parametrize("who", ["driver", "shoal:head", "shoal:zygote"])
def test_what_is_there_goes_with_the_session(tmp_path: Path, who: str) -> None:
    place = tmp_path / "target"
    with holder(tmp_path, place) as program:
        session = program.session()
        program.expect("full")
        assert files_in(place)
        family = program.descendants()
        if who == "driver":
            program.kill()
        else:
            named(family, who).kill()
        wait_until(end_of(family), "every process of the session ends", PATIENCE_S)
        wait_until(lambda: os.listdir(place) == [], "nothing of it is there", PATIENCE_S)
        program.kill()
    wait_until(lambda: not session.exist(), "its files are removed", PATIENCE_S)


def test_what_is_there_is_removed_by_the_next_start_if_all_are_killed_at_once(
    tmp_path: Path,
) -> None:
    place = tmp_path / "target"
    with holder(tmp_path, place) as program:
        session = program.session()
        program.expect("full")
        family = program.descendants()
        pids = [program.pid, *(process.pid for process in family)]
        # Stopped first, so that none cleans up after another.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        program.process.wait()
        wait_until(end_of(family), "all are dead", PATIENCE_S)
    (folder,) = place.iterdir()
    assert session.folder.name in folder.name
    # While the target cannot be reached, the note of it stays.
    note = session.folder / "remote"
    url = note.read_text()
    note.write_text("nonsense://bucket")
    sweep_dead_sessions(str(session.folder.parent))
    assert sorted(os.listdir(session.folder)) == ["lock", "remote"]
    note.write_text(url)
    sweep_dead_sessions(str(session.folder.parent))
    assert not session.exist()
    assert os.listdir(place) == []


@pytest.mark.parametrize("url", ["s3://bucket/objects", "nonsense://bucket"])
def test_a_target_for_which_something_is_missing_is_refused_at_the_start(
    tmp_path: Path, url: str
) -> None:
    session = Session(str(tmp_path / "sessions"))
    with pytest.raises(ValueError, match=r"(?s)spill-remote.*object_spilling_directory"):
        launch_head(session, load_config({"spill_remote": url}))
    assert not os.path.lexists(session.directory)
