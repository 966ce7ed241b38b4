"""The kernel's own end of a worker, in a control group that is made for it: told as what it is, and tried again.

Needs the right to make control groups, as in a container's own tree; where that is missing the test is skipped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.kernel.control_groups import MemoryGroup, memory_groups
from tests.api.scripts import run_script

MIB = 1 << 20


@pytest.fixture
def tight_group() -> Iterator[MemoryGroup]:
    """A control group with 400 MiB, inside the one that this process is in."""
    own = next((group for group in memory_groups() if group.folder.is_dir()), None)
    if own is None:
        pytest.skip("no control groups for memory")
    folder = own.folder / f"shoal-test-{os.getpid()}"
    limit = "memory.max" if own.version == 2 else "memory.limit_in_bytes"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            (folder / limit).write_text(str(400 * MIB))
        except OSError as error:
            pytest.skip(f"the control group has no limit for memory: {error}")
        # Without swap, or it is only slow.
        for swap in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            with contextlib.suppress(OSError):
                (folder / swap).write_text("0" if own.version == 2 else str(400 * MIB))
        yield MemoryGroup(folder, own.version)
    finally:
        deadline = time.monotonic() + 10
        while True:
            try:
                folder.rmdir()
                break
            except OSError:
                # Somebody in it has not been reaped yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def test_a_worker_that_the_kernel_ends_is_told_as_out_of_memory(
    tmp_path: Path, tight_group: MemoryGroup
) -> None:
    result = run_script(
        tmp_path,
        f"""
        import os, time
        from pathlib import Path
        Path("{tight_group.folder}/cgroup.procs").write_text(str(os.getpid()))
        import shoal
        shoal.init(num_cpus=1, object_store_memory=64 << 20, _system_config={{
            # The kernel is to be quicker.
            "memory_usage_threshold": 1.0, "oom_retry_ms": 50, "task_oom_retries": 1,
        }})

        @shoal.remote(max_retries=3)
        def swallow():
            with open("tries", "a") as file:
                file.write("x")
            memory = b"x" * (800 << 20)
            time.sleep(60)

        try:
            shoal.get(swallow.remote(), timeout=60)
        except shoal.exceptions.OutOfMemoryError as error:
            Path("error").write_text(str(error))
        """,
    )
    assert tight_group.oom_kills() == 2
    assert (tmp_path / "tries").read_text() == "xx"
    text = (tmp_path / "error").read_text()
    assert text.startswith("swallow() ran out of memory 2 times")
    assert "the kernel has just killed a process for that reason" in text
    assert "MiB of it were resident" in text
    assert "most likely because memory was exhausted" in result.stderr
