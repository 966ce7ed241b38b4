"""The fixtures around process tests do what they say, shown on a small tree of tests with a stand-in for shoal.

The stand-in starts a process for `init` and ends it for `shutdown`, so that the leak check has something real to find, and
the check itself is the one of tests/conftest.py, in a pytest of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

STAND_IN = """
import os, pathlib, subprocess, sys

_running = []

def _sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

def init(**options):
    assert not _running, "already running"
    assert os.environ["SHOAL_TMPDIR"].startswith("/tmp/shoal-t")
    _running.append(_sleeper())
    return options

def grow():
    _running.append(_sleeper())

def is_initialized():
    return bool(_running)

def shutdown():
    while _running:
        process = _running.pop()
        process.kill()
        process.wait()
"""

PROCESS_TESTS = """
import os, pathlib, subprocess, sys, threading
import pytest, shoal

def test_clean(cluster):
    assert cluster == {"num_cpus": 2}

@pytest.mark.cluster(num_cpus=4, resources={"x": 1})
def test_options(cluster):
    assert cluster == {"num_cpus": 4, "resources": {"x": 1}}

def test_left_running():
    shoal.init()

def test_leaks_a_folder(cluster):
    pathlib.Path(os.environ["SHOAL_TMPDIR"], "session-x").mkdir()

class Held:
    def __init__(self):
        self.ends = os.pipe()

    def __del__(self):
        for end in self.ends:
            os.close(end)

def test_fails_with_an_open_pipe():
    held = Held()
    assert not held
"""

SHARED_TESTS = """
import os, pathlib, shoal

def test_pool_grows(shared_cluster):
    shoal.grow()

def test_is_still_the_same(shared_cluster):
    assert len(shoal._running) == 2

def test_leaves_something_for_the_end(shared_cluster):
    pathlib.Path(os.environ["SHOAL_TMPDIR"], "session-y").mkdir()
"""

CORE_TESTS = """
import os, pathlib

def test_is_not_checked():
    pathlib.Path(os.environ["SHOAL_TMPDIR"], "session-z").mkdir()
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with this conftest and the stand-in."""
    files = {
        "shoal/__init__.py": STAND_IN,
        "tests/__init__.py": "",
        "tests/process/test_a.py": PROCESS_TESTS,
        "tests/api/test_b.py": SHARED_TESTS,
        "tests/core/test_c.py": CORE_TESTS,
    }
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/leaks.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_the_fixtures_of_process_tests(tree: Path) -> None:
    # The stand-in's root goes first on the path, before that of the real package.
    options = ["-rA", "-p", "no:cacheprovider", "--leak-seconds=0.1"]
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/core", "tests/process", "tests/api"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    ).stdout
    summary = re.findall(
        r"^(PASSED|FAILED|ERROR) tests/\w+/test_\w\.py::(\w+)", shown, re.MULTILINE
    )
    assert sorted(summary) == [
        # The failed test's open pipe is not a second report.
        ("ERROR", "test_leaks_a_folder"),
        ("ERROR", "test_leaves_something_for_the_end"),
        ("FAILED", "test_fails_with_an_open_pipe"),
        ("PASSED", "test_clean"),
        ("PASSED", "test_is_not_checked"),
        ("PASSED", "test_is_still_the_same"),
        ("PASSED", "test_leaks_a_folder"),
        ("PASSED", "test_leaves_something_for_the_end"),
        ("PASSED", "test_left_running"),
        ("PASSED", "test_options"),
        ("PASSED", "test_pool_grows"),
    ], shown
    assert re.search(r"session folder: /tmp/shoal-t\w+/session-x\n", shown)
    assert re.search(r"session folder: /tmp/shoal-t\w+/session-y\n", shown)
    for root in re.findall(r"(/tmp/shoal-t\w+)/session", shown):
        assert not Path(root).exists(), "the run's session root outlived it"
