"""`init` and `shutdown`: a program's session with shoal.

One driver per process. `init` starts a head of its own on this machine and joins it, or joins a cluster; `shutdown`, the end of the
program, and any death of the driver end everything that belongs to it. A cluster goes on.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from shoal.api.logging_config import LoggingConfig
from shoal.api.options import canonical_env
from shoal.config import load_config
from shoal.messages.node import Job, LogFormat
from shoal.runtime import current_process
from shoal.runtime.reentry import refuse_reentry

if TYPE_CHECKING:
    from shoal.runtime.driver import Driver
    from shoal.runtime.joining import FoundNode

logger = logging.getLogger("shoal")

_lock = threading.RLock()
# In a fork, kept so that what it started is not taken for lost.
_parents: Driver | None = None
_driver: Driver | None = None
_exiting = False
_restore_logging: Callable[[], None] | None = None

_PRELOADABLE: Final = ("numpy",)
"""Imported by the zygote when the driver has them loaded: workers then share their pages and need no import."""


class RayContext:
    """What `init` returns: where the session is. A context manager that ends it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = weakref.ref(driver)
        self.dashboard_url = ""
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        registered = driver.process.registered
        control = driver.node_path if driver.node is None else driver.node.file.control
        self.address_info: dict[str, Any] = {
            "node_ip_address": registered.node_ip,
            "address": control,
            "gcs_address": control,
            "node_id": registered.node_id.hex(),
            "session_dir": registered.session_dir,
            "object_store_address": registered.shm_dir,
            "raylet_socket_name": driver.node_path,
            "webui_url": "",
        }

    def disconnect(self) -> None:
        """End the session, if it is still this one."""
        driver = self._driver()
        if driver is not None and driver is _driver:
            shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __repr__(self) -> str:
        return f"RayContext(address={self.address_info['address']!r}, python_version={self.python_version!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | None = None,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str | None = None,
    dashboard_port: int | None = None,
    configure_logging: bool = True,
    logging_level: int | str = logging.INFO,
    logging_format: str | None = None,
    logging_config: LoggingConfig | None = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    _memory: float | None = None,
    _node_name: str | None = None,
    _temp_dir: str | None = None,
    _system_config: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> RayContext:
    """Start shoal on this machine for this program, or join a cluster.

    Args:
        address: Host and port of a cluster's head joins that cluster, through a node that runs on this machine (`shoal start`); "auto"
            joins the newest cluster that has one. "local" starts a session of one's own. None is what `$SHOAL_ADDRESS` says, or "local".
        num_cpus: CPUs to hand out; by default those that this process may use.
        num_gpus: GPUs to hand out; by default those in `CUDA_VISIBLE_DEVICES`, or on the machine.
        resources: Custom resources, by name.
        labels: Labels of the node.
        object_store_memory: Capacity of the object store in bytes; by default 30 % of the memory.
        object_spilling_directory: Where objects are written that the store has no room for; by default in the session's folder. The
            URL of a place elsewhere (`s3://bucket/folder`) is where they go on to when the disk is short.
        ignore_reinit_error: If shoal runs already, return instead of raising.
        include_dashboard: There is none yet; True is refused.
        dashboard_host: Accepted, without effect while there is no dashboard.
        dashboard_port: The same.
        configure_logging: Whether to set up loggers in this process: the level (and format) of the logger "shoal".
        logging_level: Its level.
        logging_format: Its format.
        logging_config: How the root loggers of this process and of all workers write, instead of the two above; until
            the session ends.
        log_to_driver: Whether to show here what workers print.
        namespace: Where the names of this job's actors live; by default one of its own.
        runtime_env: Environment of this job's tasks and actors.
        _memory: Bytes that tasks may reserve with `memory=`.
        _node_name: Name of the node, for people.
        _temp_dir: Where session folders are made and nodes are looked for, instead of `/tmp/shoal-<uid>`.
        _system_config: Settings of `shoal.config`, by name.
        **unknown: Refused.

    Raises:
        RuntimeError: shoal runs already, or an option does not exist.
        ValueError: an option has a value that it cannot have, or is for sessions of one's own only.
        ConnectionError: no node of the cluster at `address` runs on this machine.
    """
    global _driver, _restore_logging  # noqa: PLW0603 - the session of this process
    if unknown:
        raise RuntimeError(
            f"init() has no option {', '.join(map(repr, sorted(unknown)))}; see help(shoal.init)"
        )
    with _lock:
        if current_process.process is not None:
            if _driver is None or not ignore_reinit_error:
                raise RuntimeError(
                    "shoal runs in this process already; call shoal.shutdown() first, or pass ignore_reinit_error=True"
                )
            return RayContext(_driver)
        if include_dashboard:
            raise ValueError("include_dashboard=True: this release of shoal has no dashboard")
        _check_numbers(object_store_memory=object_store_memory, _memory=_memory)
        _check_texts(
            namespace=namespace,
            object_spilling_directory=object_spilling_directory,
            _node_name=_node_name,
            _temp_dir=_temp_dir,
        )
        _check_labels(labels or {})
        own = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory": _memory,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "object_spilling_directory": object_spilling_directory,
            "node_name": _node_name,
        }
        node = _node_to_join(address, _temp_dir, {**own, "_system_config": _system_config})
        config = load_config(_system_config)
        env = canonical_env(runtime_env) if runtime_env else ""
        log_format = _log_format(logging_config)
        if configure_logging and log_format is None:
            _configure_logging(logging_level, logging_format)
        # Only drivers need it: the processes of the session start sooner without.
        from shoal.runtime.driver import Driver

        _driver = Driver(
            config,
            _job_of_this_program(namespace, env, log_format),
            log_to_driver=config.log_to_driver if log_to_driver is None else log_to_driver,
            preload=[name for name in _PRELOADABLE if name in sys.modules],
            node=node,
            temp_dir=_temp_dir,
            **{name: value for name, value in own.items() if value is not None},
        )
        if configure_logging and log_format is not None:
            _restore_logging = _install_logging(log_format)
        if env:
            variables = json.loads(env).get("env_vars", {})
            logger.debug("the job's environment sets %s", ", ".join(variables))
        return RayContext(_driver)


# --- what init was given, checked --------------------------------------------------------------------------------------


_WRITTEN: Final = {"memory": "_memory", "node_name": "_node_name"}


def _node_to_join(
    address: str | None, temp_dir: str | None, own: Mapping[str, Any]
) -> FoundNode | None:
    """The node of a cluster through which to join it; None for a session of one's own, which alone can have the options `own`."""
    by_variable = address is None
    address = (address or os.environ.get("SHOAL_ADDRESS", "")).strip()
    if address in {"", "local"}:
        return None
    given = [_WRITTEN.get(name, name) for name, value in own.items() if value is not None]
    if given:
        said = "SHOAL_ADDRESS" if by_variable else "address"
        raise ValueError(
            f"{', '.join(given)}: init() cannot set this when it joins a cluster ({said} is {address!r}), whose nodes have been started with "
            'their own. Leave it out, or pass address="local" for a session of this program alone'
        )
    from shoal.runtime.joining import choose_node

    return choose_node(address, temp_dir)


def _check_numbers(**values: Any) -> None:
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number of bytes, not {value!r}")
        if value <= 0:
            raise ValueError(f"{name} must be more than 0 bytes, not {value!r}")


def _check_texts(**values: Any) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise TypeError(f"{name} must be a text that is not empty, not {value!r}")


def _check_labels(labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        _check_texts(**{"a label's name": key, f"label {key!r}": value})


# --- what init makes of it ---------------------------------------------------------------------------------------------


def _job_of_this_program(namespace: str | None, env: str, log_format: LogFormat | None) -> Job:
    return Job(
        job_id=os.urandom(16),
        namespace=namespace or f"job-{os.urandom(6).hex()}",
        sys_path=[os.path.abspath(path) if path else os.getcwd() for path in sys.path],
        cwd=os.getcwd(),
        env=env,
        entrypoint=" ".join(sys.argv),
        log_format=log_format,
    )


def _log_format(wanted: LoggingConfig | None) -> LogFormat | None:
    if wanted is None:
        return None
    if not isinstance(wanted, LoggingConfig):
        raise TypeError(f"logging_config must be a shoal.LoggingConfig, not {wanted!r}")
    return wanted._format()


def _configure_logging(level: int | str, format_: str | None) -> None:
    if isinstance(level, str):
        number = logging.getLevelNamesMapping().get(level.upper())
        if number is None:
            raise ValueError(f"logging_level={level!r} is not a level; use 'info', 'warning' …")
        level = number
    logger.setLevel(level)
    if format_ is not None:
        for handler in logger.handlers or logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(format_))


def _install_logging(log_format: LogFormat) -> Callable[[], None]:
    from shoal.runtime.log_records import install

    logger.setLevel(logging.NOTSET)
    return install(log_format)


# --- the end, and a beginning by itself --------------------------------------------------------------------------------


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End the session: its tasks and actors, its processes and its shared memory. Does nothing if there is none, or if this process is a
    fork of the one whose session it is. A cluster that was joined goes on, without this program's job.

    Views of shared memory that the program still holds stay valid.

    Args:
        wait_for_processes: Accepted for compatibility; shutdown always waits.
    """
    global _driver, _restore_logging
    if _driver is not None:
        refuse_reentry(_driver.process.reactor, "shoal.shutdown()")
    with _lock:
        driver, _driver = _driver, None
        restore, _restore_logging = _restore_logging, None
        try:
            if driver is not None:
                driver.close()
        finally:
            if restore is not None:
                restore()


def is_initialized() -> bool:
    """Whether shoal runs in this process."""
    return current_process.process is not None


def _auto_init() -> None:
    if not _exiting and os.environ.get("SHOAL_ENABLE_AUTO_CONNECT", "1") != "0":
        init(ignore_reinit_error=True)


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603 - a state of this process
    # A session that began by itself from now on would have nobody to end it.
    _exiting = True
    shutdown()


def _in_child() -> None:
    """In a child that the program has forked: the session is the parent's, and so is whoever was just changing it."""
    global _driver, _parents, _lock, _restore_logging  # noqa: PLW0603 - a child begins without a session
    _driver, _parents = None, _driver
    _restore_logging = None
    _lock = threading.RLock()


current_process.auto_init = _auto_init
atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
