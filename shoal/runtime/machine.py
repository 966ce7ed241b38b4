"""What this machine has for tasks and actors, unless the user says otherwise."""

from __future__ import annotations

import contextlib
import glob
import math
import os
from collections.abc import Mapping
from typing import Final

from shoal.messages.node import UNIT
from shoal.store.session import memory_limit_bytes

_PARAMETERS: Final = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "_memory",
    "object_store_memory": "object_store_memory",
}


def default_cpus() -> float:
    """CPUs that this process may use: by its affinity, and by the quota of its control group."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            cpus = min(cpus, max(1, math.ceil(int(quota) / int(period))))
    return cpus


def gpu_ids(num_gpus: float | None) -> list[str]:
    """The ids of the GPUs to hand out: those that are visible, or as many as were asked for."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # "-1" and what follows it hide devices; so does "NoDevFiles".
        ids = []
        for entry in visible.split(","):
            entry = entry.strip()
            if not entry or entry in {"-1", "NoDevFiles"}:
                break
            ids.append(entry)
    else:
        devices = glob.glob("/dev/nvidia[0-9]*")
        ids = [str(index) for index in range(len(devices))]
    if num_gpus is None:
        return ids
    wanted = math.ceil(num_gpus)
    if wanted > len(ids):
        # More than there are, as tests on machines without GPUs ask for.
        ids = [str(index) for index in range(wanted)]
    return ids[:wanted]


def node_total(
    num_cpus: float | None,
    num_gpus: float,
    memory: float | None,
    store_bytes: int,
    node_ip: str,
    resources: Mapping[str, float] | None,
    *,
    is_head: bool = True,
) -> dict[str, int]:
    """All resources of a node, in units of 1/10,000. `is_head`: it has the resource by which programs name the head.

    Raises:
        ValueError: one is negative, or a custom one has the name of one that has a parameter of its own.
    """
    for name in resources or {}:
        if name in _PARAMETERS:
            raise ValueError(
                f"resources={{{name!r}: …}}: say {_PARAMETERS[name]}=… instead; `resources` is for custom ones"
            )
    amounts: dict[str, float] = {
        "CPU": default_cpus() if num_cpus is None else num_cpus,
        "GPU": num_gpus,
        "memory": max(0, memory_limit_bytes() - store_bytes) if memory is None else memory,
        "object_store_memory": store_bytes,
        f"node:{node_ip}": 1,
        **({"node:__internal_head__": 1} if is_head else {}),
        **(resources or {}),
    }
    for name, amount in amounts.items():
        if amount < 0:
            raise ValueError(f"{name}={amount!r}: a node cannot have less than nothing")
    return {
        name: round(amount * UNIT) for name, amount in amounts.items() if amount or name == "CPU"
    }
