"""What people are told when memory is short: who has how much, and why a worker was ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from shoal.core.byte_amounts import bytes_text

_MOST_NAMED: Final = 5


class Bound(NamedTuple):
    """What must not be exceeded. `whose` completes "of the 16 GiB of …"; `threshold` is the part from which on the monitor acts."""

    whose: str
    used_bytes: int
    limit_bytes: int
    threshold: float


class MemoryUse(NamedTuple):
    """What one process has for itself. `who` is as in "the worker with pid 12, which runs f()"."""

    who: str
    private_bytes: int


def in_use(bound: Bound) -> str:
    """How bad it is, as a clause."""
    return (
        f"{bytes_text(bound.used_bytes)} of the {bytes_text(bound.limit_bytes)} of {bound.whose} were in use, more than "
        f"{bound.threshold * 100:g} %"
    )


def monitor_clause(bound: Bound, private_bytes: int) -> str:
    """Why the monitor has ended a process, to complete "the worker …"."""
    return f"was killed by the memory monitor of its node, because {in_use(bound)}; it had {bytes_text(private_bytes)} for itself"


def kernel_clause(killed: int) -> str:
    """Why the kernel has, as far as one can know."""
    times = "a process" if killed == 1 else f"{killed} processes"
    return (
        f"was killed by SIGKILL, most likely because memory was exhausted: the kernel has just killed {times} for that reason, before "
        "the memory monitor of the node could act"
    )


def report(store_bytes: int, workers: Sequence[MemoryUse], others: Sequence[MemoryUse]) -> str:
    """Who had how much, in sentences."""
    told = [f"the object store {bytes_text(store_bytes)}"]
    by_size = sorted(workers, key=lambda use: -use.private_bytes)
    told += [f"{use.who} {bytes_text(use.private_bytes)}" for use in by_size[:_MOST_NAMED]]
    rest = by_size[_MOST_NAMED:]
    if rest:
        together = sum(use.private_bytes for use in rest)
        told.append(f"{len(rest)} other workers {bytes_text(together)}")
    text = f"At that time these had memory on the node: {'; '.join(told)}."
    if others:
        named = "; ".join(f"{use.who} {bytes_text(use.private_bytes)}" for use in others)
        text += f" Of the processes that are not workers, these had most: {named}."
    return text


ADVICE: Final = (
    "Let fewer tasks run at once (a larger num_cpus, or memory=…, for each), give each less to do, or use nodes with more memory; "
    "docs/out-of-memory.md tells how the memory monitor decides and how to set it."
)
