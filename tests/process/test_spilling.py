"""What is on disk when processes are killed, stopped, or find the disk full: nothing stays, nobody waits for ever, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shoal
from shoal.runtime import current_process
from shoal.runtime.session_folder import sweep_dead_sessions
from tests.api.gates import wait_until
from tests.process.programs import GONE_S, Program, end_of

if TYPE_CHECKING:
    import psutil

MB = 1 << 20
CAPACITY = 40 * MB
SIZE = 3 * MB

# A driver with twice as many objects as fit, half of them made by its workers.
HOLDER = """
import numpy as np
import shoal

@shoal.remote
def make(seed):
    return np.full({size}, seed, dtype=np.uint8)

say_session(shoal.init(num_cpus=2, object_store_memory={capacity}, object_spilling_directory={place}))
refs = [shoal.put(np.full({size}, seed, dtype=np.uint8)) for seed in range(13)]
refs += [make.remote(seed) for seed in range(13, 26)]
shoal.wait(refs, num_returns=len(refs))
say("full")
time.sleep(1000)
"""


def holder(folder: Path, place: str | None) -> Program:
    return Program(folder, HOLDER.format(size=SIZE, capacity=CAPACITY, place=repr(place)))


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def named(family: list[psutil.Process], name: str) -> psutil.Process:
    (found,) = [process for process in family if process.name() == name]
    return found


# --- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the folder", "elsewhere"])
@pytest.mark.parametrize("who", ["driver", "shoal:head", "shoal:zygote"])
def test_what_is_on_disk_goes_with_the_session(tmp_path: Path, who: str, elsewhere: bool) -> None:
    place = tmp_path / "disk"
    with holder(tmp_path, str(place) if elsewhere else None) as program:
        session = program.session()
        program.expect("full")
        family = program.descendants()
        spilled = place if elsewhere else session.folder / "spill"
        assert files_in(spilled)
        if who == "driver":
            program.kill()
        else:
            named(family, who).kill()
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        wait_until(lambda: not files_in(spilled), "nothing of it is on disk", GONE_S)
        if who == "driver":
            wait_until(lambda: not session.exist(), "its files are removed", GONE_S)
        else:
            program.kill()
    if elsewhere:
        wait_until(lambda: os.listdir(place) == [], "nor is its folder", GONE_S)


def test_what_is_on_disk_is_removed_by_the_next_start_if_all_are_killed_at_once(
    tmp_path: Path,
) -> None:
    place = tmp_path / "disk"
    with holder(tmp_path, str(place)) as program:
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
        wait_until(end_of(family), "all are dead", GONE_S)
        assert files_in(place)
        assert sweep_dead_sessions(str(session.folder.parent)) >= 1
        assert not session.exist()
        assert os.listdir(place) == []


# --- processes of a session --------------------------------------------------------------------------------------------

in_a_session = [
    pytest.mark.usefixtures("cluster"),
    pytest.mark.cluster(
        num_cpus=4,
        object_store_memory=CAPACITY,
        _system_config={"spill_fallback_s": 0.5, "spill_batch_bytes": 6 * MB},
    ),
]


def array(seed: int, size: int = SIZE) -> Any:
    return np.full(size, seed, dtype=np.uint8)


def is_right(found: Any, seed: int) -> bool:
    return bool((found == seed).all())


def spill_folder() -> Path:
    return Path(current_process.require().session_dir) / "spill"


@shoal.remote
class Keeper:
    """A process with objects."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def pid(self) -> int:
        return os.getpid()

    def keep(self, seeds: list[int]) -> int:
        self.kept += [shoal.put(array(seed)) for seed in seeds]
        return len(self.kept)

    def make(self, seed: int) -> Any:
        return array(seed)

    def check(self, seeds: list[int]) -> bool:
        return all(is_right(shoal.get(ref), n) for ref, n in zip(self.kept, seeds, strict=True))


class TestInASession:
    pytestmark = in_a_session

    def test_what_a_killed_process_owned_goes_from_the_disk(self) -> None:
        keeper = Keeper.remote()
        pid = shoal.get(keeper.pid.remote())
        shoal.get(keeper.keep.remote(list(range(30))), timeout=60)
        assert files_in(spill_folder())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not files_in(spill_folder()), "nobody uses it, and it is freed")
        # All of the memory came back as well.
        refs = [shoal.put(array(seed)) for seed in range(11)]
        assert not files_in(spill_folder())
        del refs

    def test_a_stopped_holder_holds_up_nobody(self) -> None:
        keeper = Keeper.remote()
        pid = shoal.get(keeper.pid.remote())
        seeds = list(range(8))
        shoal.get(keeper.keep.remote(seeds), timeout=60)
        os.kill(pid, signal.SIGSTOP)
        try:
            refs = [shoal.put(array(seed)) for seed in range(30)]
            assert all(is_right(shoal.get(ref), seed) for seed, ref in enumerate(refs))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert shoal.get(keeper.check.remote(seeds), timeout=60)
        # It does its part again.
        shoal.get(keeper.keep.remote(seeds * 4), timeout=60)
        assert shoal.get(keeper.check.remote(seeds * 5), timeout=60)

    @pytest.mark.parametrize("after", [3, 12, 25, 40])
    def test_results_of_a_process_that_is_killed_while_it_writes_are_whole(
        self, after: int
    ) -> None:
        keeper = Keeper.options(max_concurrency=2).remote()
        pid = shoal.get(keeper.pid.remote())
        refs = [keeper.make.remote(seed) for seed in range(60)]
        shoal.wait(refs, num_returns=after, timeout=60)
        os.kill(pid, signal.SIGKILL)
        found = 0
        for seed, ref in enumerate(refs):
            try:
                assert is_right(shoal.get(ref, timeout=60), seed)
                found += 1
            except shoal.exceptions.RayActorError:
                continue
        assert found >= after
        del refs, ref
        wait_until(lambda: not files_in(spill_folder()), "all of it is freed")


# --- a full disk -------------------------------------------------------------------------------------------------------

NO_DISK = """
import numpy as np
import shoal

context = shoal.init(
    num_cpus=1,
    object_store_memory={capacity},
    _system_config={{"spill_disk_fraction": 0.0001, "store_full_timeout_s": 1.0}},
)
say_session(context)
refs = [shoal.put(np.full({size}, seed, dtype=np.uint8)) for seed in range(12)]
for size in ({size}, {capacity} + 1):
    try:
        shoal.put(np.ones(size, dtype=np.uint8))
    except shoal.exceptions.ShoalError as error:
        say(type(error).__name__, str(error).replace(chr(10), " "))
assert all((shoal.get(ref) == seed).all() for seed, ref in enumerate(refs))
say("whole")
shoal.shutdown()
"""


def test_where_the_disk_takes_nothing_the_error_says_so(tmp_path: Path) -> None:
    with Program(tmp_path, NO_DISK.format(size=SIZE, capacity=CAPACITY)) as program:
        session = program.session()
        error = program.line()
        assert "driver (pid" in error
        assert f"Spilling to {session.folder}/spill has stopped" in error
        assert "Make room there" in error
        too_large = program.line()
        assert "disk" in too_large
        assert "object_spilling_directory" in too_large
        program.expect("whole")
        program.wait()


# In name spaces of its own: a disk of 32 MB.
SMALL_DISK = """
if "INSIDE" not in os.environ:
    os.environ["INSIDE"] = "yes"
    os.execvp("unshare", ["unshare", "-rm", sys.executable, __file__])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", {place}], check=True)

import numpy as np
import shoal

say_session(
    shoal.init(
        num_cpus=1,
        object_store_memory={capacity},
        object_spilling_directory={place},
        _system_config={{"store_full_timeout_s": 1.5, "spill_retry_s": 0.2, "spill_batch_bytes": 6 << 20}},
    )
)
refs = []
try:
    while True:
        refs.append(shoal.put(np.full({size}, len(refs), dtype=np.uint8)))
except shoal.exceptions.ShoalError as error:
    say(str(error).replace(chr(10), " "))
say(len(refs))
assert all((shoal.get(ref) == seed).all() for seed, ref in enumerate(refs))
say("whole")
# The oldest are on disk. When these go, others find room there.
kept = refs[6:]
refs.clear()
kept += [shoal.put(np.full({size}, seed, dtype=np.uint8)) for seed in range(len(kept) + 6, len(kept) + 9)]
assert all((shoal.get(ref) == seed).all() for seed, ref in enumerate(kept, 6))
say("again")
shoal.shutdown()
say(len(os.listdir({place})))
"""


def may_unshare() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    done = subprocess.run(
        [unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="a small disk takes name spaces of one's own")
def test_a_disk_that_gets_full_and_has_room_again(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    source = SMALL_DISK.format(size=SIZE, capacity=CAPACITY, place=repr(str(place)))
    with Program(tmp_path, source) as program:
        program.session()
        assert "has stopped" in program.line()
        # 12 in memory, and nearly as many on disk.
        assert 20 <= int(program.line()) <= 22
        program.expect("whole")
        program.expect("again")
        program.expect("0")
        program.wait()
