"""What is said when a machine runs short of memory: between the memory monitor of a node, its workers, and the owners of what they run.

::

    node ── WhatRuns ──► workers ── Runs ──► node          when memory is short, to choose well
    worker ── Runs ──► node                                when tasks that may not be tried again follow others that may, or the reverse
    node ── PeerGone(…, memory=MemoryEnd) ──► owners       a worker was ended

Nothing of this is said for each task.
"""

from __future__ import annotations

import msgspec


class MemoryEnd(msgspec.Struct, array_like=True):
    """Why a worker was ended: its node was running out of memory."""

    private_bytes: int
    """What it had for itself, 0 if that is not known."""
    alone: bool
    """No other worker of the node had enough to make a difference."""
    report: str
    """Sentences: who else had how much."""
    peak_bytes: int = 0
    """The most that was resident of it, with what it had mapped of the object store; 0 if that is not known."""


class WhatRuns(msgspec.Struct, array_like=True, tag=130):
    """Node to worker: say what you run. Answered by `Runs`, soon or not at all."""


class Runs(msgspec.Struct, array_like=True, tag=131):
    """Worker to node: what runs here. `name` is empty if only `retriable` is told, or nothing runs."""

    retriable: bool
    name: str = ""
    ran_ns: int = 0
    """For how long."""
