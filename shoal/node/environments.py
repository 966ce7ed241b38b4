"""Runtime environments: what a worker's process must look like before user code runs in it.

An environment comes as canonical JSON (`Shape.env`). Here it becomes what a fork takes: variables, a working directory,
a module path. What cannot be made is refused by name, before any process starts.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from shoal.messages.node import Job


class EnvironmentFailed(Exception):  # noqa: N818 - it reports what has happened to an environment
    """The environment cannot be made; the text says why and what to change."""


class _Wishes(msgspec.Struct):
    """What this version can make. `config` is about the making, and changes nothing about the process."""

    env_vars: dict[str, str | int | float | bool] | None = None
    working_dir: str | None = None
    py_modules: list[str] | None = None
    config: Any = None


def prepare(job: Job, env: str) -> tuple[Job, dict[str, str]]:
    """The job as the worker is to see it, and the variables to set.

    Raises:
        EnvironmentFailed: it asks for something that is not there or not known.
    """
    if not env:
        return job, {}
    try:
        fields = msgspec.json.decode(env, type=dict[str, Any])
        wishes = msgspec.convert(fields, _Wishes)
    except msgspec.DecodeError as error:
        raise EnvironmentFailed(f"runtime_env {env} is not one: {error}") from None
    unknown = sorted(
        name
        for name, value in fields.items()
        if name not in _Wishes.__struct_fields__ and value not in (None, "", [], {})
    )
    if unknown:
        raise EnvironmentFailed(
            f"runtime_env has {', '.join(unknown)}, which this version cannot make; "
            "it knows env_vars, working_dir and py_modules"
        )
    path = list(job.sys_path)
    cwd = job.cwd
    if wishes.working_dir is not None:
        if not os.path.isdir(wishes.working_dir):
            raise EnvironmentFailed(
                f"working_dir {wishes.working_dir!r} is not a directory on this machine"
            )
        cwd = os.path.abspath(wishes.working_dir)
        path.insert(0, cwd)
    for module in wishes.py_modules or []:
        if not os.path.exists(module):
            raise EnvironmentFailed(
                f"py_modules names {module!r}, which does not exist on this machine"
            )
        path.insert(0, os.path.dirname(os.path.abspath(module)))
    variables = {name: str(value) for name, value in (wishes.env_vars or {}).items()}
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise EnvironmentFailed(
                f"env_vars has {name!r}, which cannot be an environment variable"
            )
    return msgspec.structs.replace(job, sys_path=path, cwd=cwd), variables
