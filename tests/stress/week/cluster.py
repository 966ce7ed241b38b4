"""The whole of it: a cluster, its drivers, the samples, the checks that nothing is left, and the idle minutes.

::

    this process ──► Cluster: control store, node daemons ─► zygotes ─► workers, actors
         │      ──lines of JSON, standard input──► drivers (`driver`), which are the load
         └── Sampler: looks at all of them

Guarantees: whatever happens, drivers and cluster end with `run`, and their end is bounded. Every wait is, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.leaks import Leak, take_snapshot, wait_until_clean
from tests.stress.week.load import PATIENCE_S, Share
from tests.stress.week.sampling import Sampler

REPOSITORY: Final = Path(__file__).parents[3]
_POLL_S: Final = 0.2
_END_S: Final = 20.0
_QUIET_S: Final = 30.0
"""How long what is dropped may take to be gone everywhere, and idle memory to be given back."""


@dataclass(frozen=True)
class Plan:
    """What to do; bytes are those of each node's store, and what each driver holds at most. `settings` are the cluster's."""

    tasks: int
    objects: int
    kills: int
    idle_s: float
    seed: int
    nodes: int
    drivers: int
    store_bytes: int
    budget_bytes: int
    every_s: float
    most_s: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What was measured. `left` is what was there though nothing should be; it is empty if all is well."""

    plan: Plan
    done: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0
    left: list[str] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    sampler: Sampler | None = None


class LoadFailedError(Exception):
    """A driver ended, or something took too long; says what."""


class DriverProcess:
    """One driver: its latest words, and its end."""

    def __init__(self, address: str, share: Share) -> None:
        options = json.dumps({"address": address, "share": asdict(share)})
        # A group of its own: an interrupt at the terminal is for this process, which ends the drivers in good order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.week.driver", options],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.said: dict[str, Any] = {"phase": "start"}
        self._reader = threading.Thread(target=self._read, name=f"words of driver {self.pid}")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said = json.loads(line)

    def check(self) -> None:
        """Raise if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise LoadFailedError(f"driver {self.pid} has ended with {status}, after: {self.said}")

    def stop(self) -> None:
        """Have it leave the cluster. It may be called again."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Until it has ended; it is killed if that takes long."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def run(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Everything. `say` is told how far it is.

    Raises:
        LoadFailedError: a driver failed (its own words are on standard error), or it took more than `most_s`.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-week-") as folder, _session_root(folder) as root:
        before = take_snapshot(root)
        outcome = Outcome(plan)
        with ExitStack() as stack:
            _run(plan, say, outcome, root, stack)
        outcome.leaks = wait_until_clean(before, _END_S)
    return outcome


@contextmanager
def _session_root(folder: str) -> Iterator[Path]:
    """All processes below make their session folders in this one."""
    before = os.environ.get("SHOAL_TMPDIR")
    os.environ["SHOAL_TMPDIR"] = folder
    try:
        yield Path(folder)
    finally:
        if before is None:
            del os.environ["SHOAL_TMPDIR"]
        else:
            os.environ["SHOAL_TMPDIR"] = before


def _run(
    plan: Plan, say: Callable[[str], None], outcome: Outcome, root: Path, stack: ExitStack
) -> None:
    from shoal.testing.cluster import Cluster

    cluster = stack.enter_context(Cluster(initialize_head=False, system_config=plan.settings))
    cluster.add_nodes(
        [
            {
                "num_cpus": 1,
                "object_store_memory": plan.store_bytes,
                "memory": 10**9,
                "resources": {f"node{number}": 1_000},
            }
            for number in range(plan.nodes)
        ]
    )
    sessions = [node.session_dir for node in cluster.nodes]
    drivers: list[DriverProcess] = []
    sampler = Sampler(
        plan.every_s,
        root,
        [Path(f"{session}/shm").read_text("utf-8") for session in sessions],
        [f"{session}/spill" for session in sessions],
        lambda: _sum([driver.said for driver in drivers]),
    )
    outcome.sampler = sampler
    sampler.fixed[cluster.control_pid] = "control store"
    for number, node in enumerate(cluster.nodes):
        sampler.fixed[node.pid] = f"daemon {number}"
    stack.callback(lambda: [driver.wait() for driver in drivers])
    stack.callback(lambda: [driver.stop() for driver in drivers])
    for number in range(plan.drivers):
        driver = DriverProcess(cluster.address, _share(plan, number))
        drivers.append(driver)
        sampler.fixed[driver.pid] = f"driver {number}"
    stack.enter_context(sampler)

    began = time.monotonic()
    sampler.phase = "load"
    latest = ""
    while any(driver.said["phase"] != "dropped" for driver in drivers):
        for driver in drivers:
            driver.check()
            sampler.roles.update((int(p), r) for p, r in driver.said.get("roles", {}).items())
        outcome.done = _sum([driver.said for driver in drivers])
        words = _progress(plan, outcome.done, time.monotonic() - began)
        if words != latest:
            say(words)
            latest = words
        if time.monotonic() - began > plan.most_s:
            raise LoadFailedError(
                f"the load is not through after {plan.most_s:g} s: {outcome.done}"
            )
        time.sleep(_POLL_S)
    outcome.load_s = time.monotonic() - began
    outcome.done = _sum([driver.said for driver in drivers])
    for driver in drivers:
        outcome.left += [f"driver {driver.pid} knows {entry}" for entry in driver.said["left"]]

    sampler.phase = "dropped"
    say("all is dropped; waiting until nothing is left")
    outcome.left += _await_nothing(cluster, sampler)

    sampler.phase = "idle"
    sampler.look()
    say(f"idle for {plan.idle_s:g} s")
    until = time.monotonic() + plan.idle_s
    while time.monotonic() < until:
        for driver in drivers:
            driver.check()
        time.sleep(_POLL_S)
    sampler.look()
    sampler.phase = "end"


def _share(plan: Plan, number: int) -> Share:
    return Share(
        plan.seed * 1_000 + number,
        plan.tasks // plan.drivers,
        plan.objects // plan.drivers,
        plan.kills // plan.drivers,
        plan.budget_bytes,
        plan.nodes,
    )


def _sum(said: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for words in said:
        for name, value in words.items():
            if isinstance(value, int):
                total[name] = total.get(name, 0) + value
    return total


def _progress(plan: Plan, done: dict[str, int], seconds: float) -> str:
    wanted = {"tasks": plan.tasks, "objects": plan.objects}
    part = min((done.get(name, 0) / most for name, most in wanted.items() if most), default=1.0)
    left = f", {seconds / part - seconds:.0f} s to go" if part > 0.01 else ""
    counts = ", ".join(f"{done.get(k, 0):,} {k}" for k in ("tasks", "objects", "kills", "lost"))
    return f"{part:4.0%} {counts}, {done.get('held_bytes', 0) / 1e6:.0f} MB held{left}"


def _await_nothing(cluster: Any, sampler: Sampler) -> list[str]:
    """Wait until no object, reference, actor or task is anywhere, and memory has been given back; what there still is otherwise."""
    deadline = time.monotonic() + _QUIET_S
    while True:
        left = _there_is(cluster, sampler)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1.0)


def _there_is(cluster: Any, sampler: Sampler) -> list[str]:
    from shoal.util import state
    from shoal.util.memory import memory_report

    with state.asking(cluster.address, PATIENCE_S) as questions:
        report = memory_report(questions)
    left = [f"object: {one.asdict()}" for one in report.objects[:20]]
    left += [f"block: {block.asdict()}" for block in report.blocks[:20]]
    left += [f"did not answer: {who}" for who in report.silent]
    for node in report.nodes:
        for name in ("objects", "copies", "freed_in_view", "left_by_ended", "on_disk", "inline"):
            if getattr(node, name):
                left.append(f"node {node.node_id[:8]}: {name} = {getattr(node, name)}")
    left += [
        f"actor: {actor.asdict()}"
        for actor in state.list_actors(cluster.address, limit=10_000)
        if actor.state != "DEAD"
    ][:20]
    left += [
        f"node {row.node_id.hex()[:8]} has leased out: {row.total} of which {row.available}"
        for row in cluster.rows()
        if row.alive and row.available != row.total
    ]
    sampler.look()
    stores = sampler.stores[-1]
    if stores.disk_files:
        left.append(f"{stores.disk_files} files of spilled objects, {stores.disk} bytes")
    if stores.memory:
        left.append(f"{stores.memory_files} files in shared memory, {stores.memory} bytes")
    return left
