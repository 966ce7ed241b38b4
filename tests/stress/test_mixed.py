"""Everything at once, from four driver threads, for `--stress-seconds`; and then nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import shoal
from shoal.runtime import current_process
from shoal.wire.addresses import creator_at
from tests.api.gates import wait_until
from tests.stress import workload as work
from tests.stress.drivers import PATIENCE_S, Driver, Shared

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]

THREADS: Final = 4
CPUS: Final = 4
SEED: Final = int(os.environ.get("SHOAL_STRESS_SEED", "20"))


@pytest.mark.parametrize("crashes", [False, True], ids=["", "with crashes"])
@pytest.mark.cluster(num_cpus=CPUS, object_store_memory=2 * 10**9)
def test_mixed_load(cluster: Any, stress_seconds: float, crashes: bool) -> None:
    """Half of the time without, half with tasks that kill their workers."""
    until = time.monotonic() + stress_seconds / 2
    shared = Shared()
    drivers = [Driver(SEED + n, shared, crashes) for n in range(THREADS)]
    run_all(drivers, until)
    scenarios: dict[str, int] = {}
    for driver in drivers:
        for name, count in driver.done.items():
            scenarios[name] = scenarios.get(name, 0) + count
    print(f"{sum(scenarios.values())} scenarios:", dict(sorted(scenarios.items())))
    del shared, drivers, driver
    gc.collect()
    check_that_all_is_over(Path(cluster["object_store_address"]))


def run_all(drivers: list[Driver], until: float) -> None:
    """Each in a thread; when one fails the others stop too, and its error is raised."""
    errors: list[BaseException] = []

    def run(driver: Driver) -> None:
        try:
            driver.run(until)
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(driver,), name=f"driver {driver.seed}")
        for driver in drivers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(drivers)} drivers failed", errors)


def check_that_all_is_over(shared_memory: Path) -> None:
    """No object is known, none is alive in the store, all leases are back, and the surplus workers have gone."""
    process = current_process.require()
    wait_until(lambda: known_objects() == [], f"no object is known any more: {known_objects()}")
    with process.lock:
        process.objects.check()
        process.owner.tasks.check()
    assert process.store.arena.stats().live_blocks == 0
    wait_until(
        lambda: shoal.available_resources().get("CPU") == CPUS, "all leases have been given back"
    )
    wait_until(lambda: not living_objects(), "no worker has an object any more")
    # Workers that idle for long end, and what they made goes with them.
    wait_until(lambda: len(workers()) <= CPUS, "surplus workers end")
    names = living_creators()
    wait_until(
        lambda: creators_in(shared_memory) <= living_creators(),
        f"the dead leave no segment: {names}, {sorted(os.listdir(shared_memory))}",
    )


def known_objects() -> list[Any]:
    process = current_process.require()
    with process.lock:
        process.settle()
        return list(process.objects.entries.values())


def living_objects() -> list[Any]:
    """What workers say that own or know objects still, all of those that idle now being asked."""
    said = shoal.get([work.store_of_this_worker.remote(0.05) for _ in range(CPUS)])
    assert len(said) == CPUS
    # A worker that runs the question knows the objects of no argument: it has none.
    return [word for word in said if word[1] or word[2]]


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        # One that ends just now is none.
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "shoal:worker":
                found.append(process)
    return found


def living_creators() -> set[str]:
    said = shoal.get(
        [work.store_of_this_worker.remote(0.05) for _ in range(CPUS)], timeout=PATIENCE_S
    )
    own = creator_at(current_process.require().address)
    return {own, *(word[0] for word in said)}


def creators_in(folder: Path) -> set[str]:
    return {path.name[:8] for path in folder.iterdir()}
