"""What a process keeps of the objects of another that has ended."""

from __future__ import annotations

import os
import signal

import pytest

import shoal
from shoal.runtime import current_process
from tests.api.gates import wait_until


@shoal.remote
def make() -> tuple[int, bytes]:
    return os.getpid(), bytes(1_000_000)


@pytest.mark.usefixtures("cluster")
def test_mappings_that_nobody_looks_at_go_with_the_process_that_made_them() -> None:
    ref = make.remote()
    pid, _ = shoal.get(ref, timeout=30)
    reader = current_process.require().store._reader
    assert reader is not None
    assert reader.stats().idle_mappings == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: reader.stats().mappings == 0, "the mapping goes")
    assert reader.stats().descriptors == 0
    # The object itself lives, as long as it is referred to.
    assert shoal.get(ref, timeout=30)[0] == pid
