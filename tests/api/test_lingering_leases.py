"""Tasks of one shape after those of another, on a node that can serve only one at a time: leases that idle are no reason to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.testing.cluster import Cluster
from tests.api.gates import Gate

# Whoever keeps a lease for as long as the settings let it keeps the others waiting for longer than any test does.
FOR_EVER_MS = 3_600_000
KEEPING = {"lease_idle_ms": FOR_EVER_MS, "fair_share_ms": FOR_EVER_MS}

pytestmark = pytest.mark.cluster(num_cpus=1, _system_config=KEEPING)


@shoal.remote(num_cpus=1)
def with_a_cpu(x: int) -> int:
    return x + 1


@shoal.remote(num_cpus=0.5)
def with_half_a_cpu(x: int) -> int:
    return x + 1


@shoal.remote(num_cpus=1)
def hold(began: Gate, go_on: Gate) -> None:
    began.open()
    go_on.wait()


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=60)


@pytest.mark.usefixtures("cluster")
def test_shapes_take_turns_without_waiting_for_leases_to_run_out() -> None:
    value = 0
    for _ in range(5):
        value = get(with_a_cpu.remote(value))
        value = get(with_half_a_cpu.remote(value))
    assert value == 10


@pytest.mark.usefixtures("cluster")
def test_a_lease_that_is_in_use_goes_to_another_shape_when_it_idles(
    gates: Callable[[str], Gate],
) -> None:
    began, go_on = gates("began"), gates("go_on")
    held = hold.remote(began, go_on)
    began.wait()
    waiting = with_half_a_cpu.remote(1)
    assert shoal.wait([waiting], timeout=0.05) == ([], [waiting])
    go_on.open()
    assert get(waiting) == 2
    get(held)


def test_shapes_take_turns_at_another_node() -> None:
    with Cluster(head_node_args={"num_cpus": 0}, system_config=KEEPING) as several:
        several.add_node(num_cpus=1)
        with several.connect():
            value = 0
            for _ in range(3):
                value = get(with_a_cpu.remote(value))
                value = get(with_half_a_cpu.remote(value))
            assert value == 6
