"""What every test runs in: a session root of its own run, fixed hypothesis seeds, clusters, and the leak check.

The leak check surrounds each test but those of the pure layers, which start no processes. A module that uses `shared_cluster` is checked
once, at its end, since its workers rightly come and go between its tests. shoal is imported only when a fixture needs it, so that the
tests of the pure layers run without the rest.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

from tests.leaks import PROBES, SETTLE_S, Snapshot, report, take_snapshot, wait_until_clean

TESTS: Final = Path(__file__).parent
PURE_TESTS: Final = tuple(
    TESTS / name for name in ("core", "layers", "serial", "sim", "store", "wire")
)

SESSION_ROOT: Final = pytest.StashKey[Path]()
OUTER_ROOT: Final = pytest.StashKey[str | None]()
SHARED_CLUSTER_RUNS: Final = pytest.StashKey[bool]()
FAILED: Final = pytest.StashKey[bool]()

# The same examples each time: a red run can be run again. `--hypothesis-profile=explore` searches further, and keeps
# what it finds in .hypothesis until it is mended and written down as an @example.
settings.register_profile("shoal", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=5_000, deadline=None, print_blob=True)
# Of `make fuzz`, which stops when its time is up.
settings.register_profile("fuzz", max_examples=2_000, deadline=None, print_blob=True)
settings.load_profile("shoal")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stress-seconds",
        type=float,
        default=20.0,
        help="how long each test marked `stress` loads the machine (default: %(default)s)",
    )
    parser.addoption(
        "--leak-seconds",
        type=float,
        default=SETTLE_S,
        help="how long what a test started may take to go (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Shells start background jobs with it ignored, and whatever the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Right under /tmp, because a Unix socket's path may have 107 bytes and no more.
    root = Path(tempfile.mkdtemp(prefix="shoal-t", dir="/tmp"))
    config.stash[SESSION_ROOT] = root
    config.stash[OUTER_ROOT] = os.environ.get("SHOAL_TMPDIR")
    os.environ["SHOAL_TMPDIR"] = str(root)
    # What else is on the disk of this machine is no matter of the tests.
    os.environ.setdefault("SHOAL_SPILL_DISK_FRACTION", "1.0")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[SESSION_ROOT], ignore_errors=True)
    outer = config.stash[OUTER_ROOT]
    if outer is None:
        os.environ.pop("SHOAL_TMPDIR", None)
    else:
        os.environ["SHOAL_TMPDIR"] = outer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    item.stash[FAILED] = outcome.failed or item.stash.get(FAILED, False)
    return outcome


@pytest.fixture(scope="session")
def session_root(pytestconfig: pytest.Config) -> Path:
    """The folder where this run's sessions live."""
    return pytestconfig.stash[SESSION_ROOT]


@pytest.fixture
def stress_seconds(pytestconfig: pytest.Config) -> float:
    """How long a stress test loads the machine."""
    return float(pytestconfig.getoption("stress_seconds"))


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, session_root: Path) -> Iterator[None]:
    """Fail a test that leaves anything behind, five seconds after it and `shoal.shutdown()`."""
    pure = any(request.path.is_relative_to(folder) for folder in PURE_TESTS)
    if pure or request.config.stash.get(SHARED_CLUSTER_RUNS, False):
        yield
        return
    before = take_snapshot(session_root)
    yield
    shut_down_if_running()
    # The traceback of a failed test keeps its frames alive, and they their files: that would be a second, false report.
    failed = request.node.stash.get(FAILED, False)
    kinds = [kind for kind in PROBES if not (failed and kind == "descriptor")]
    fail_if_anything_is_left(request.config, before, kinds)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cluster of this test's own, with two CPUs or what `@pytest.mark.cluster(...)` says; the value of `init`."""
    with running_cluster(request.node) as context:
        yield context


@pytest.fixture(scope="module")
def shared_cluster(request: pytest.FixtureRequest, session_root: Path) -> Iterator[Any]:
    """One cluster for all tests of a module that need no fresh one; options by `pytestmark = pytest.mark.cluster(...)`."""
    with checked_at_the_end(request.config, session_root), running_cluster(request.node) as context:
        yield context


@contextmanager
def checked_at_the_end(config: pytest.Config, session_root: Path) -> Iterator[None]:
    """Around what all tests of a module share: what is left behind is looked for once, afterwards."""
    before = take_snapshot(session_root)
    config.stash[SHARED_CLUSTER_RUNS] = True
    try:
        yield
    finally:
        config.stash[SHARED_CLUSTER_RUNS] = False
    fail_if_anything_is_left(config, before)


@contextmanager
def running_cluster(node: pytest.Item | pytest.Module) -> Iterator[Any]:
    """Between `init` and `shutdown`, with the options of the node's `cluster` marks, the closest one winning."""
    import shoal

    options: dict[str, Any] = {"num_cpus": 2}
    for mark in reversed(list(node.iter_markers("cluster"))):
        options |= mark.kwargs
    context = shoal.init(**options)
    try:
        yield context
    finally:
        shoal.shutdown()


def shut_down_if_running() -> None:
    """End the cluster that a test left running, so that only what outlives `shutdown` counts as a leak."""
    shoal = sys.modules.get("shoal")
    if shoal is not None and shoal.is_initialized():
        shoal.shutdown()


def fail_if_anything_is_left(
    config: pytest.Config, before: Snapshot, kinds: Collection[str] | None = None
) -> None:
    """Give what a test started its time to go, and fail with the list of what stayed."""
    seconds = config.getoption("leak_seconds")
    if found := wait_until_clean(before, seconds, kinds):
        pytest.fail(report(found, seconds), pytrace=False)
