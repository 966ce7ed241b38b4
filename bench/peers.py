"""The systems under test and the part of their API that the workloads use.

Owns: the names of the peers, how each is opened and closed, the environment it runs in.
Leaves to others: where an interpreter with the peer comes from (``ray_venv.py``), and processes
(``launch.py``).  Imported inside Ray's environment too, so only the standard library is used.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from bench import clusters
from bench.clusters import Nodes

REPOSITORY = Path(__file__).resolve().parent.parent
CPUS = 2


class Core(Protocol):
    """What a workload may use: the names that shoal and Ray Core have in common.

    Everything that crosses this boundary is ``Any``, because the very same workload is handed
    either module and neither is at hand where types are checked.
    """

    __name__: str

    def init(self, **options: Any) -> Any: ...
    def shutdown(self) -> Any: ...
    def remote(self, target: Callable[..., Any], /) -> Any: ...
    def get(self, refs: Any, *, timeout: float | None = None) -> Any: ...
    def put(self, value: Any) -> Any: ...
    def wait(
        self, refs: list[Any], *, num_returns: int = 1, fetch_local: bool = True
    ) -> tuple[list[Any], list[Any]]: ...
    def kill(self, actor: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """One system under test: a module and the options of its ``init``.

    ``driver_options`` are those of a driver that joins a cluster.
    """

    name: str
    module: str
    init_options: Mapping[str, Any] = field(default_factory=dict)
    driver_options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Core:
        return cast(Core, importlib.import_module(self.module))

    def with_init(self, options: Mapping[str, Any]) -> Peer:
        return replace(self, init_options={**self.init_options, **options})

    @contextmanager
    def session(self, nodes: Nodes | None = None) -> Iterator[Any]:
        """What workloads of this peer take as their argument, for as long as it is open.

        With ``nodes`` that is a cluster, whose driver this process is; ``init_options`` are not for it.
        """
        if self.name == POOL.name:
            pool = multiprocessing.Pool(CPUS)
            try:
                yield pool
            finally:
                pool.close()
                pool.join()
        elif self.name == SOCKETS.name:
            yield None
        elif nodes is not None:
            with clusters.opened(self, nodes) as core:
                yield core
        else:
            core = self.load()
            core.init(**self.init_options)
            try:
                yield core
            finally:
                core.shutdown()

    def version(self) -> str:
        if self.name in {POOL.name, SOCKETS.name}:
            return f"Python {platform.python_version()}"
        return str(getattr(importlib.import_module(self.module), "__version__", "unknown"))


# ``address="local"``: never attach to a cluster that happens to run on this machine.  Ray is
# spared its dashboard, which the measured programs do not need.
SHOAL = Peer("shoal", "shoal", {"address": "local", "num_cpus": CPUS})
RAY = Peer(
    "ray",
    "ray",
    {
        "address": "local",
        "num_cpus": CPUS,
        "include_dashboard": False,
        "logging_level": "error",
    },
    {"logging_level": "error"},
)
POOL = Peer("pool", "multiprocessing")
SOCKETS = Peer("sockets", "socket")
PEERS = {peer.name: peer for peer in (SHOAL, RAY, POOL, SOCKETS)}

# Would make a peer attach to, or configure itself like, some other session of the user's.
_STRAY_PREFIXES = ("RAY_", "SHOAL_")


def worker_environment(scratch: Path) -> dict[str, str]:
    """The environment of a measured process: the user's, without settings for either peer."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_STRAY_PREFIXES)}
    # An installed package has its bytecode; a checkout gets its own on the first run, which warms up.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["PYTHONPATH"] = str(REPOSITORY)
    env["PYTHONUNBUFFERED"] = "1"
    env["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry thread, no network
    env["RAY_TMPDIR"] = str(scratch)  # hundreds of session folders go when the run ends
    env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # silences a notice, changes no figure
    return env


@dataclass(slots=True)
class Stopwatch:
    """Wall-clock laps: ``lap()`` returns the seconds since the last one."""

    since: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        return seconds
