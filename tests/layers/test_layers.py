"""The layer order of the package, and proof that the checker would object if it were broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers.import_rules import EXCEPTIONS, LAYERS, check_tree

ROOT = Path(__file__).parents[2] / "shoal"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def objections(root: Path, files: dict[str, str]) -> list[str]:
    return [
        f"{v.path.relative_to(root).as_posix()}:{v.line}: {v.text}"
        for v in check_tree(write_tree(root, files))
    ]


def test_the_package_keeps_the_order() -> None:
    violations = check_tree(ROOT)
    assert not violations, "\n".join(map(str, violations))


def test_no_module_is_in_two_layers() -> None:
    names = [name for _, members in LAYERS for name in members]
    assert len(names) == len(set(names))


def test_every_exception_has_a_reason() -> None:
    assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


GOOD_TREE = {
    "__init__.py": "from shoal.api.remote import remote\n",
    "errors.py": "class ShoalError(Exception): ...\n",
    "ids.py": "import os\n",
    "messages/tasks.py": "import msgspec\nfrom typing import Any\nfrom shoal.ids import ID_SIZE\n",
    "core/tasks.py": "from collections import deque\nfrom shoal.messages.tasks import Push\n",
    "wire/reactor.py": "import select\nfrom shoal import errors\nfrom shoal.core import tasks\n",
    "control/server.py": "import asyncio\nfrom shoal.wire import reactor\n",
    "control/storage/sqlite.py": "import sqlite3\n",
    "node/daemon.py": "from shoal.control import server\n",
    "node/zygote.py": "import shoal.worker.main\n",
    "runtime/owner.py": "from shoal.serial import dumps\nfrom shoal.core.tasks import Tasks\n",
    "serial/__init__.py": "import cloudpickle\n",
    "worker/main.py": "from shoal.runtime import owner\n",
    "api/remote.py": "from shoal.runtime import owner\n",
    "cli/__init__.py": "import click\nimport shoal\nfrom shoal.node import daemon\n",
}


def test_a_good_tree_passes(tmp_path: Path) -> None:
    assert objections(tmp_path, GOOD_TREE) == []


def test_an_import_turned_round_fails(tmp_path: Path) -> None:
    tree = GOOD_TREE | {
        "wire/reactor.py": "import select\n",
        "core/tasks.py": "from shoal.wire import reactor\n",
    }
    assert objections(tmp_path, tree) == [
        "core/tasks.py:1: core imports shoal.wire.reactor of wire, a higher layer: imports point down"
    ]


@pytest.mark.parametrize(
    ("file", "source", "line", "complaint"),
    [
        pytest.param(
            "core/tasks.py",
            "def f():\n    from shoal.runtime import owner\n",
            2,
            "core imports shoal.runtime.owner of runtime, a higher layer",
            id="inside a function",
        ),
        pytest.param(
            "wire/reactor.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shoal.api.remote\n",
            3,
            "wire imports shoal.api.remote of api, a higher layer",
            id="for types only",
        ),
        pytest.param(
            "wire/reactor.py",
            "from ..runtime import owner\n",
            1,
            "wire imports shoal.runtime.owner of runtime, a higher layer",
            id="relative",
        ),
        pytest.param(
            "serial/__init__.py",
            "from .. import api\n",
            1,
            "serial imports shoal.api of api, a higher layer",
            id="relative, from a package",
        ),
        pytest.param(
            "wire/reactor.py",
            "import importlib\nimportlib.import_module('shoal.api.remote')\n",
            2,
            "wire imports shoal.api.remote of api, a higher layer",
            id="by name",
        ),
        pytest.param(
            "runtime/owner.py",
            "import shoal\n",
            1,
            "runtime imports shoal of public, a higher layer",
            id="the public names",
        ),
        pytest.param(
            "node/daemon.py",
            "from shoal.worker import main\n",
            1,
            "node imports shoal.worker.main of worker, a higher layer",
            id="the zygote's exception is the zygote's alone",
        ),
        pytest.param(
            "runtime/owner.py",
            "from shoal.node import daemon\n",
            1,
            "runtime imports shoal.node.daemon of node: processes talk only in messages",
            id="a client layer a daemon",
        ),
        pytest.param(
            "worker/main.py",
            "from shoal.control.server import Server\n",
            1,
            "worker imports shoal.control.server of control: processes talk only in messages",
            id="the worker a daemon",
        ),
        pytest.param(
            "core/tasks.py", "import time\n", 1, "core imports time, a clock", id="clock in core"
        ),
        pytest.param(
            "core/tasks.py",
            "from os import path\n",
            1,
            "core imports os, files or the system",
            id="files in core",
        ),
        pytest.param(
            "core/tasks.py",
            "import concurrent.futures\n",
            1,
            "core imports concurrent.futures, concurrency",
            id="threads in core",
        ),
        pytest.param(
            "core/tasks.py",
            "from shoal.clock import monotonic_ns\n",
            1,
            "core imports shoal.clock: cores take `now` as an argument",
            id="our own clock in core",
        ),
        pytest.param(
            "core/tasks.py", "def f():\n    print(1)\n", 2, "print() is I/O", id="print in core"
        ),
        pytest.param(
            "core/tasks.py",
            "import numpy\n",
            1,
            "beside the standard library it may use nothing",
            id="a library in core",
        ),
        pytest.param(
            "messages/tasks.py",
            "import psutil\n",
            1,
            "beside the standard library it may use msgspec",
            id="a library in messages",
        ),
        pytest.param(
            "node/daemon.py",
            "def f():\n    import cloudpickle\n",
            2,
            "daemons never unpickle user data",
            id="pickle in a daemon",
        ),
        pytest.param(
            "node/daemon.py",
            "def f():\n    import redis.asyncio\n",
            2,
            "node imports redis.asyncio: only shoal.control.storage touches storage",
            id="storage outside of it",
        ),
        pytest.param(
            "control/server.py",
            "import sqlite3\n",
            1,
            "control imports sqlite3: only shoal.control.storage touches storage",
            id="storage beside it",
        ),
        pytest.param(
            "gadgets.py", "", 1, "shoal.gadgets belongs to no layer", id="a module without a layer"
        ),
        pytest.param(
            "node/zygote.py",
            "import shoal.config\n",
            1,
            "no longer imports worker: take the exception away",
            id="an exception not needed",
        ),
    ],
)
def test_the_checker_objects(
    tmp_path: Path, file: str, source: str, line: int, complaint: str
) -> None:
    found = objections(tmp_path, GOOD_TREE | {"clock.py": "import time\n"} | {file: source})
    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:{line}: ")
    assert complaint in found[0]


def test_types_of_others_may_be_named_in_core(tmp_path: Path) -> None:
    source = "import typing\nif typing.TYPE_CHECKING:\n    from random import Random\n"
    assert objections(tmp_path, GOOD_TREE | {"core/tasks.py": source}) == []
