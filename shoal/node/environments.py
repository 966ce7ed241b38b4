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


def prepare(job: Job, env: str) -> tuple[Job, dict[str, str]]:
    """The job as the worker is to see it, and the variables to set.

    Raises:
        EnvironmentFailed: it asks for something that is not there or not known.
    """
    if not env:
        return job, {}
    wishes = dict(msgspec.json.decode(env.encode(), type=dict[str, Any]))
    variables = wishes.pop("env_vars", None) or {}
    folder = wishes.pop("working_dir", None)
    modules = wishes.pop("py_modules", None) or []
    # Keys that change nothing about the process.
    wishes.pop("config", None)
    unknown = [name for name, value in wishes.items() if value not in (None, "", [], {})]
    if unknown:
        raise EnvironmentFailed(
            f"runtime_env has {', '.join(sorted(unknown))}, which this version cannot make; "
            "it knows env_vars, working_dir and py_modules"
        )
    path = list(job.sys_path)
    cwd = job.cwd
    if folder is not None:
        if not isinstance(folder, str) or not os.path.isdir(folder):
            raise EnvironmentFailed(f"working_dir {folder!r} is not a directory on this machine")
        cwd = os.path.abspath(folder)
        path.insert(0, cwd)
    for module in modules:
        if not isinstance(module, str) or not os.path.exists(module):
            raise EnvironmentFailed(
                f"py_modules names {module!r}, which does not exist on this machine"
            )
        path.insert(0, os.path.dirname(os.path.abspath(module)))
    return (
        msgspec.structs.replace(job, sys_path=path, cwd=cwd),
        {str(name): str(value) for name, value in variables.items()},
    )
