"""What counts on each object of a process, told apart: handles, tasks, other objects, views, other processes.

Entries keep numbers only (see `core.references`), since that is all that freeing needs. Whoever wants to know looks once through everything
that may hold an entry, and what is left of its count is a message on its way.

Pure; called with the runtime's lock held. Nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shoal.core.references import Entry
from shoal.core.tasks import State, Task
from shoal.core.waits import name_of, short
from shoal.messages.inventory import (
    ACTOR_HANDLE,
    BORROWED,
    CAPTURED_IN_OBJECT,
    GENERATOR_ITEM,
    IN_TRANSIT,
    LOCAL_REFERENCE,
    OWNER_GONE,
    PINNED_IN_MEMORY,
    USED_BY_PENDING_TASK,
    Holding,
)

_MOST_NAMED: Final = 3
"""Tasks and objects that are named of those that hold one object; the others are counted."""


class Holdings:
    """See the module's docstring.

    Args:
        entries: All entries of the process.
        tasks: All its tasks and calls that are not finished.
        items: Entries that generators have and nobody has taken yet.
        captured: Entries that functions and classes captured, with their names.
        gone: Entries whose owners have ended.
        detached: Entries that keep what detached actors were made of.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        tasks: Iterable[Task],
        items: Iterable[Entry],
        captured: Iterable[tuple[str, list[Entry]]],
        gone: Iterable[Entry],
        detached: Iterable[Entry] = (),
    ) -> None:
        # How often each is held; texts are made for those only that somebody wants to see.
        self._tasks: dict[Entry, list[Task]] = {}
        self._inside: dict[Entry, list[Entry]] = {}
        self._captured: dict[Entry, list[str]] = {}
        self._items = set(items)
        self._gone = set(gone)
        self._detached = set(detached)
        for task in tasks:
            for entry in task.holds or ():
                self._tasks.setdefault(entry, []).append(task)
        for outer in entries:
            for inner in outer.contains or ():
                self._inside.setdefault(inner, []).append(outer)
        for name, held in captured:
            for entry in held:
                self._captured.setdefault(entry, []).append(name)

    def is_handle(self, entry: Entry) -> bool:
        """Whether it is no object, and the handles of an actor count on it."""
        return entry.actor_id is not None or entry in self._detached

    def kind(self, entry: Entry, *, viewed: bool) -> str:
        """The type of the reference: the first of its kinds."""
        if self.is_handle(entry):
            return ACTOR_HANDLE
        if viewed:
            return PINNED_IN_MEMORY
        if entry in self._tasks:
            return USED_BY_PENDING_TASK
        if entry.local:
            return LOCAL_REFERENCE
        return self._lesser_kind(entry)

    def _lesser_kind(self, entry: Entry) -> str:
        if entry in self._inside or entry in self._captured:
            return CAPTURED_IN_OBJECT
        if entry in self._items:
            return GENERATOR_ITEM
        if entry.borrowers:
            return BORROWED
        return OWNER_GONE if entry in self._gone else IN_TRANSIT

    def of(self, entry: Entry, *, viewed: bool) -> list[Holding]:
        """All that counts on an entry. `viewed`: this process looks at its bytes."""
        found: list[Holding] = []
        left = entry.holds
        tasks = self._tasks.get(entry, [])
        handle = self.is_handle(entry)
        if handle:
            found.append(Holding(ACTOR_HANDLE, entry.local))
        if viewed:
            found.append(Holding(PINNED_IN_MEMORY))
        if tasks:
            what = "needed by" if handle else "an argument of"
            text = _some([f"{what} {_state(task)}" for task in tasks[:_MOST_NAMED]], tasks)
            found.append(Holding(USED_BY_PENDING_TASK, len(tasks), text))
            left -= len(tasks)
        if entry.local and not handle:
            found.append(Holding(LOCAL_REFERENCE, entry.local))
        inside, captured = self._inside.get(entry, []), self._captured.get(entry, [])
        if inside or captured:
            texts = [_container(outer) for outer in inside] + [f"captured by {n}" for n in captured]
            text = _some(texts[:_MOST_NAMED], texts)
            found.append(Holding(CAPTURED_IN_OBJECT, len(texts), text))
            left -= len(texts)
        if entry in self._items:
            found.append(Holding(GENERATOR_ITEM))
            left -= 1
        borrowers = entry.borrowers
        if borrowers:
            found.append(Holding(BORROWED, len(borrowers)))
        if entry in self._gone:
            found.append(Holding(OWNER_GONE))
        if left > 0 or not found:
            found.append(Holding(IN_TRANSIT, max(1, left)))
        return found


def _some(texts: list[str], all_of_them: list[Task] | list[str]) -> str:
    more = len(all_of_them) - len(texts)
    return ", ".join(texts) + (f", and {more:,} more" if more else "")


def _container(outer: Entry) -> str:
    if outer.actor_id is not None:
        return f"one of the arguments of the actor {short(outer.actor_id)}"
    return f"inside object {outer.object_id.hex()}"


def _state(task: Task) -> str:
    """A task, and what it waits for, as a clause."""
    subject = f"{name_of(task)}() ({short(task.task_id)})"
    if task.state is State.HERE:
        return f"{subject}, which runs here"
    if task.lane is not None:
        return f"{subject}, which was sent to pid {task.lane.pid}"
    if task.unready:
        missing = next((entry for _, entry in task.deps or () if entry.value is None), None)
        first = "" if missing is None else f": object {missing.object_id.hex()}"
        return f"{subject}, which waits for {task.unready} of its arguments{first}"
    if task.function is None:
        return f"{subject}, which waits for its actor"
    return f"{subject}, which waits for a worker"
