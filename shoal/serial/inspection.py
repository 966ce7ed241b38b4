"""`inspect_serializability`: asks before sending whether a value can be sent, and lists everything in the way."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from shoal.serial.advice import advice_for
from shoal.serial.culprits import Search
from shoal.serial.explain import describe, reason
from shoal.serial.hooks import HOOKS, Hooks

_MAX_FAILURES = 20


class Failure:
    """A part of an inspected value that cannot be sent.

    Equal only to itself: the parts need not be hashable, and none is listed twice.

    Attributes:
        obj: The part.
        name: The variable, attribute, key or index that holds it.
        parent: The object that holds it; None for the inspected value itself.
        path: The way to it, in words.
        error: What pickling it raised.
    """

    __slots__ = ("error", "name", "obj", "parent", "path")

    def __init__(
        self, obj: Any, name: str, parent: Any, path: tuple[str, ...], error: Exception
    ) -> None:
        self.obj = obj
        self.name = name
        self.parent = parent
        self.path = path
        self.error = error

    def __repr__(self) -> str:
        return f"Failure({self.name!r}: {' -> '.join((*self.path, describe(self.obj)))})"


def inspect_serializability(
    base_obj: Any,
    name: str | None = None,
    depth: int = 3,
    print_file: TextIO | None = None,
    *,
    hooks: Hooks = HOOKS,
) -> tuple[bool, set[Failure]]:
    """Whether a value can be sent to another process; if not, which parts of it stand in the way.

    Args:
        base_obj: The value: data, a function, a class.
        name: What to call it in the report; its own name or type by default.
        depth: How many steps to follow into it.
        print_file: Where the report goes; standard output by default.
        hooks: The registered types.

    Returns:
        True and an empty set, or False and the parts that failed, at most 20.
    """
    out = print_file or sys.stdout
    title = name or getattr(base_obj, "__qualname__", None) or describe(base_obj)
    search = Search(hooks, max_depth=depth, budget_s=10.0)
    error = search.attempt(base_obj)
    if error is None:
        print(f"{title}: can be sent to other processes.", file=out)
        return True, set()
    culprits = search.find(base_obj, error, name=title, limit=_MAX_FAILURES)
    print(f"{title}: cannot be sent to other processes. {_count(len(culprits))}:", file=out)
    for number, culprit in enumerate(culprits, start=1):
        steps = (*culprit.path, describe(culprit.obj))
        print(f"{number}. {' -> '.join(steps)}", file=out)
        print(f"   Why: {reason(culprit)}.", file=out)
        if culprit.certain:
            print(f"   What to do: {advice_for(culprit.obj, culprit.error)}", file=out)
        else:
            print(f"   The search stopped there; a depth above {depth} looks further.", file=out)
    return False, {
        Failure(culprit.obj, culprit.name, culprit.parent, culprit.path, culprit.error)
        for culprit in culprits
    }


def _count(failures: int) -> str:
    if failures == 1:
        return "One part stands in the way"
    if failures == _MAX_FAILURES:
        return f"At least {failures} parts stand in the way"
    return f"{failures} parts stand in the way"
