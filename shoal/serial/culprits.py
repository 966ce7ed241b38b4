"""Finds which part of a value cannot be sent.

Owns the search: starting from a value whose pickling failed, it tries the parts one by one (large containers by
halving), follows those that fail, and stops at a part that fails although all its own parts pass. Guarantees an
end: the search is bounded in depth, in attempts and in time, and says when a bound cut it short. Costs up to
`Search.budget_s` seconds and runs the user's `__reduce__` methods again; it runs only when an error is certain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.serial.edges import Edge, edges
from shoal.serial.hooks import Hooks
from shoal.serial.pickler import ValuePickler

_MAX_PARTS = 200_000
"""Parts of one object that are tried."""

_HARMLESS = frozenset((type(None), bool, int, float, str, bytes))


@dataclass(frozen=True, slots=True, eq=False)
class Culprit:
    """A part that cannot be sent, though nothing inside it is to blame.

    Attributes:
        obj: The part.
        name: The variable, key, attribute or index under which its parent holds it.
        parent: What holds it; None for the root.
        path: Steps from the root to it, in words.
        error: What pickling it raised.
        certain: False if a bound stopped the search here, and the fault may lie deeper.
    """

    obj: Any
    name: str
    parent: Any
    path: tuple[str, ...]
    error: Exception
    certain: bool = True


class _OutOfBudgetError(Exception):
    """The search has used up its attempts or its time."""


class Search:
    """One search for culprits; attempts and time are counted over all of it."""

    def __init__(
        self,
        hooks: Hooks,
        *,
        max_depth: int = 40,
        max_attempts: int = 5000,
        budget_s: float = 2.0,
    ) -> None:
        self._hooks = hooks
        self._max_depth = max_depth
        self._attempts_left = max_attempts
        self._deadline = time.monotonic() + budget_s
        # What is known to fail. The objects are kept, not only their ids: parts that a reduction made would die and
        # lend their ids to others.
        self._failed: dict[int, Any] = {}

    def find(self, root: Any, error: Exception, *, name: str = "", limit: int = 1) -> list[Culprit]:
        """Up to `limit` culprits in `root`, whose pickling raised `error`; at least one."""
        found: list[Culprit] = []
        at = Culprit(root, name, None, (), error)
        self._descend(at, limit, found)
        return found or [at]

    def attempt(self, obj: Any) -> Exception | None:
        """What pickling `obj` raises; None if it passes."""
        if self._attempts_left <= 0 or time.monotonic() > self._deadline:
            raise _OutOfBudgetError
        self._attempts_left -= 1
        pickler = ValuePickler(self._hooks)
        try:
            pickler.dump(obj)
        except Exception as error:  # noqa: BLE001 - user code; the error is the result
            # Its frames would keep this search, and with it the user's objects, in a cycle.
            return error.with_traceback(None)
        finally:
            pickler.abandon()
        return None

    def _descend(self, at: Culprit, limit: int, found: list[Culprit]) -> None:
        """Add the culprits at or below `at`, which is known to fail."""
        self._failed[id(at.obj)] = at.obj
        if isinstance(at.error, RecursionError):
            found.append(at)  # deeper would only show more of the same nesting
            return
        blamed_elsewhere = False
        try:
            parts = []
            for edge in edges(at.obj, self._hooks):
                if id(edge.child) in self._failed:
                    # A way back to what is being searched, or to what was found before: not the fault of `at`.
                    blamed_elsewhere = True
                elif type(edge.child) not in _HARMLESS:
                    parts.append(edge)
                    if len(parts) >= _MAX_PARTS:
                        raise _OutOfBudgetError
            if parts and len(at.path) >= self._max_depth:
                raise _OutOfBudgetError
            for edge, error in self._failing(parts):
                blamed_elsewhere = True
                if id(edge.child) not in self._failed:
                    path = (*at.path, edge.words)
                    child = Culprit(edge.child, edge.name, at.obj, path, error)
                    self._descend(child, limit, found)
                if len(found) >= limit:
                    return
        except _OutOfBudgetError:
            found.append(Culprit(at.obj, at.name, at.parent, at.path, at.error, certain=False))
            return
        if not blamed_elsewhere:
            found.append(at)

    def _failing(self, parts: Sequence[Edge]) -> Iterator[tuple[Edge, Exception]]:
        """The parts that fail, by halving: each is pickled about log2(n) times, in company, not each alone."""
        if len(parts) <= 2:
            for part in parts:
                error = self.attempt(part.child)
                if error is not None:
                    yield part, error
        elif self.attempt([part.child for part in parts]) is not None:
            middle = len(parts) // 2
            yield from self._failing(parts[:middle])
            yield from self._failing(parts[middle:])
