"""What a forked child must not inherit: lock descriptors, and the belief that its parent's blocks are its own.

A child shares its parent's open file descriptions, so it could drop the parent's locks, and keeps them alive when the
parent dies. Everything of this package that holds a descriptor registers here and is told, in the child, to let go.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Forkable(Protocol):
    def after_fork_in_child(self) -> None: ...


_watched: weakref.WeakSet[_Forkable] = weakref.WeakSet()
_installed = False


def _in_child() -> None:
    for instance in list(_watched):
        instance.after_fork_in_child()


def watch(instance: _Forkable) -> None:
    """Call `instance.after_fork_in_child()` in every process forked from now on."""
    global _installed  # noqa: PLW0603 - hooks cannot be removed again, so it is put in once, on first use
    if not _installed:
        os.register_at_fork(after_in_child=_in_child)
        _installed = True
    _watched.add(instance)
