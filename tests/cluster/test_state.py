"""What a cluster tells about itself: why something waits, and what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shoal.testing.cluster import Cluster
from tests.api.gates import wait_until

PATIENCE_S = 60

INFEASIBLE = """
import sys, shoal
shoal.init(address=sys.argv[1])

@shoal.remote(resources={"late": 1})
def work():
    return "done"

@shoal.remote(num_cpus=100)
class Large:
    def ready(self):
        return "ready"

refs = [work.remote() for _ in range(5)]
large = Large.options(name="big").remote()
answer = large.ready.remote()
print("submitted", flush=True)
print(*shoal.get([*refs, answer]), flush=True)
"""


TOO_SOON = """
import sys, shoal
shoal.init(address=sys.argv[1])
work = shoal.remote(resources={"late": 1})(len).remote("abc")
print("submitted", flush=True)
print(shoal.get(work), flush=True)
"""


@pytest.fixture
def one() -> Iterator[Cluster]:
    with Cluster(head_node_args={"num_cpus": 1}, system_config={"explain_ms": 0}) as cluster:
        yield cluster


def test_a_driver_is_warned_once_of_what_fits_nowhere_and_it_runs_when_a_node_joins(
    one: Cluster,
) -> None:
    environ = {**os.environ, "SHOAL_TOKEN": one.token.hex()}
    with subprocess.Popen(
        [sys.executable, "-c", INFEASIBLE, one.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "submitted\n"
        wait_until(lambda: one.status().waiting != [], "the actor waits")
        # A node that helps nobody is no reason to say it again.
        one.add_node(num_cpus=1)
        one.add_node(num_cpus=128, resources={"late": 1})
        assert driver.stdout.readline().split() == ["done"] * 5 + ["ready"]
        _, errors = driver.communicate(timeout=PATIENCE_S)
    said = [line for line in errors.splitlines() if line.startswith("shoal: ")]
    assert len(said) == 2, errors
    task, actor = sorted(said, reverse=True)
    assert task.startswith(
        "shoal: the task work() waits: it needs late 1, and the only node has none."
    )
    assert "`shoal start --address=HOST:PORT --num-cpus=1 --resources='{\"late\": 1}'`" in task
    assert actor.startswith(
        "shoal: the actor 'big' of class Large waits: it needs CPU 100, and the only node has 1."
    )
    assert "--num-cpus=100" in actor


def test_nobody_is_warned_of_what_fits_before_it_is_time_to_explain() -> None:
    with Cluster(head_node_args={"num_cpus": 1}, system_config={"explain_ms": 60_000}) as cluster:
        environ = {**os.environ, "SHOAL_TOKEN": cluster.token.hex()}
        with subprocess.Popen(
            [sys.executable, "-c", TOO_SOON, cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        ) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "submitted\n"
            # It takes much longer until there is a node than until the request has found none.
            cluster.add_node(num_cpus=1, resources={"late": 1})
            said, errors = driver.communicate(timeout=PATIENCE_S)
    assert said == "3\n"
    assert errors == ""
