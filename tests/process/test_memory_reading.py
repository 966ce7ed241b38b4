"""What the memory monitor reads, off kernels that are made up: folders with the files that a kernel would have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.node.memory_reading import Level, MemoryReading, Usage, folder_bytes

KIB = 1024
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
NO_LIMIT = 9223372036854771712


class Kernel:
    """A root folder with what a kernel tells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/cgroup", "")
        self.meminfo(total=1000 * MIB, available=600 * MIB)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def meminfo(self, total: int, available: int) -> None:
        text = f"MemTotal: {total // KIB} kB\nMemFree: 1 kB\nMemAvailable: {available // KIB} kB\nBuffers: 7 kB\n"
        self.write("proc/meminfo", text)

    def process(
        self, pid: int, name: str, resident: int, shared: int, leader: int | None = None
    ) -> None:
        after_name = f"S 1 {leader or pid} 1 0 -1 4194560" + 13 * " 0" + " 77"
        self.write(f"proc/{pid}/stat", f"{pid} ({name}) {after_name}\n")
        self.write(f"proc/{pid}/statm", f"9999 {resident // PAGE} {shared // PAGE} 5 0 123 0\n")
        self.write(f"proc/{pid}/comm", f"{name}\n")

    def version_2(
        self, group: str, limit: str, used: int, *, file: int = 0, kills: int = 0
    ) -> None:
        folder = f"sys/fs/cgroup{group}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        stat = f"anon 1\nfile {file}\nshmem 77\ninactive_file {file}\nactive_file {file}\nslab_reclaimable 0\n"
        self.write(f"{folder}/memory.stat", stat)
        self.write(f"{folder}/memory.events", f"low 0\nhigh 0\nmax 9\noom 5\noom_kill {kills}\n")

    def version_1(
        self, group: str, limit: int, used: int, *, file: int = 0, kills: int = 0
    ) -> None:
        folder = f"sys/fs/cgroup/memory{group}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        stat = f"inactive_file 1\ntotal_inactive_file {file}\ntotal_active_file {file}\n"
        self.write(f"{folder}/memory.stat", stat)
        self.write(
            f"{folder}/memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
        )

    def reading(self) -> MemoryReading:
        return MemoryReading(self.root)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_a_machine_without_control_groups(kernel: Kernel) -> None:
    reading = kernel.reading()
    assert reading.levels() == [Level("the machine", 400 * MIB, 1000 * MIB)]
    # Each look is a new one.
    kernel.meminfo(total=1000 * MIB, available=10 * MIB)
    (level,) = reading.levels()
    assert level.part == pytest.approx(0.99)


def test_limits_of_all_groups_around_count_in_version_2(kernel: Kernel) -> None:
    kernel.write("proc/self/cgroup", "0::/outer/inner\n")
    kernel.version_2("/outer/inner", "max", 90 * MIB)
    kernel.version_2("/outer", str(200 * MIB), 150 * MIB, file=20 * MIB)
    machine, group = kernel.reading().levels()
    assert machine.name == "the machine"
    # What the kernel takes back is not used: files of both lists.
    assert group == Level("its control group", 110 * MIB, 200 * MIB)


def test_limits_of_all_groups_around_count_in_version_1(kernel: Kernel) -> None:
    kernel.write("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/\n")
    kernel.version_1("/a/b", 300 * MIB, 250 * MIB, file=10 * MIB)
    kernel.version_1("/a", NO_LIMIT, 400 * MIB)
    kernel.version_1("", NO_LIMIT, 400 * MIB)
    _, group = kernel.reading().levels()
    assert group == Level("its control group", 230 * MIB, 300 * MIB)


def test_in_a_container_only_the_top_is_visible(kernel: Kernel) -> None:
    kernel.write("proc/self/cgroup", "4:memory:/docker/0123\n")
    kernel.version_1("", 100 * MIB, 60 * MIB)
    _, group = kernel.reading().levels()
    assert group == Level("its control group", 60 * MIB, 100 * MIB)


def test_a_limit_that_is_more_than_the_machine_has_says_nothing(kernel: Kernel) -> None:
    kernel.write("proc/self/cgroup", "0::/g\n")
    kernel.version_2("/g", str(2000 * MIB), 10 * MIB)
    assert [level.name for level in kernel.reading().levels()] == ["the machine"]


def test_a_limit_that_is_set_later_counts_from_then_on(kernel: Kernel) -> None:
    kernel.write("proc/self/cgroup", "0::/g\n")
    kernel.version_2("/g", "max", 10 * MIB)
    reading = kernel.reading()
    assert len(reading.levels()) == 1
    kernel.version_2("/g", str(20 * MIB), 10 * MIB)
    assert len(reading.levels()) == 2


def test_no_kernel_at_all(tmp_path: Path) -> None:
    reading = MemoryReading(tmp_path)
    assert reading.levels() == []
    assert reading.oom_kills() == 0
    assert reading.private_bytes(1) == 0


def test_shared_pages_are_not_a_process_own(kernel: Kernel) -> None:
    kernel.process(7, "python", resident=50 * MIB, shared=30 * MIB)
    assert kernel.reading().private_bytes(7) == 20 * MIB
    assert kernel.reading().private_bytes(8) == 0


def test_the_biggest_of_the_others(kernel: Kernel) -> None:
    kernel.process(1, "init", resident=5 * MIB, shared=5 * MIB)
    kernel.process(2, "web browser", resident=500 * MIB, shared=100 * MIB)
    kernel.process(3, "shoal:worker", resident=900 * MIB, shared=0)
    kernel.process(4, "editor", resident=90 * MIB, shared=0)
    found = kernel.reading().biggest(but=[3], most=2)
    assert found == [Usage(2, "web browser", 400 * MIB), Usage(4, "editor", 90 * MIB)]
    # Whoever has nothing for itself is not among them.
    assert len(kernel.reading().biggest(but=[3], most=9)) == 2


def test_what_a_process_has_started_counts_as_its_own(kernel: Kernel) -> None:
    kernel.process(3, "shoal:worker", resident=20 * MIB, shared=0)
    kernel.process(4, "load) er (4 2", resident=300 * MIB, shared=0, leader=3)
    kernel.process(5, "other", resident=100 * MIB, shared=0)
    reading = kernel.reading()
    assert reading.of_groups([3, 9]) == {3: 320 * MIB, 9: 0}
    assert [usage.pid for usage in reading.biggest(but=[3], most=9)] == [5]


def test_kills_of_the_own_group_are_counted(kernel: Kernel) -> None:
    kernel.write("proc/vmstat", "nr_free_pages 7\noom_kill 100\n")
    assert kernel.reading().oom_kills() == 100
    kernel.write("proc/self/cgroup", "0::/g\n")
    kernel.version_2("/g", "max", 0, kills=3)
    assert kernel.reading().oom_kills() == 3
    kernel.write("proc/self/cgroup", "4:memory:/a\n")
    kernel.version_1("/a", NO_LIMIT, 0, kills=2)
    kernel.version_1("", NO_LIMIT, 0, kills=50)
    assert kernel.reading().oom_kills() == 2


def test_this_machine() -> None:
    reading = MemoryReading()
    machine, *_ = reading.levels()
    assert 0 < machine.used < machine.limit
    before = reading.private_bytes(os.getpid())
    ballast = b"x" * (64 * MIB)
    assert reading.private_bytes(os.getpid()) >= before + 60 * MIB
    assert any(usage.pid == os.getpid() for usage in reading.biggest([], 1_000))
    assert len(ballast) == 64 * MIB


def test_what_a_folder_takes_up(tmp_path: Path) -> None:
    assert folder_bytes(str(tmp_path / "none")) == 0
    (tmp_path / "full").write_bytes(b"x" * MIB)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(100 * MIB)
    assert MIB <= folder_bytes(str(tmp_path)) < 2 * MIB
