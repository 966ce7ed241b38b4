"""Placement groups as the processes see them that use them: what the node tells of each, and who waits for that.

Threads: `create`, `remove`, `query` and `when_ready` are called by user threads and take the lock; the handler is called with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shoal.core.references import Entry
from shoal.errors import TaskPlacementGroupRemoved
from shoal.messages.placement import (
    GroupChange,
    GroupCreate,
    GroupInfo,
    GroupQuery,
    GroupRemove,
    GroupSpec,
    GroupWatch,
)
from shoal.messages.values import Failed
from shoal.runtime.refs import ObjectRef
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.runtime.process import Process

_REMEMBERED: Final = 1_000
"""Removed groups that are known to be; about others the node is asked again."""


class Groups:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        # Groups that are watched: None until the node has told.
        self._known: dict[bytes, GroupChange | None] = {}
        self._removed: dict[bytes, GroupChange] = {}
        self._waiting: dict[bytes, list[tuple[Entry, Any]]] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {GroupChange: self._on_change}

    def create(self, spec: GroupSpec) -> None:
        """Make a group; returns when it is accepted, not when it is reserved.

        Raises:
            ValueError: it cannot be made; says why.
        """
        with self._process.lock:
            # Whoever makes a group watches it, the node sees to that.
            self._known[spec.group_id] = None
        try:
            self._process.node.query(lambda req: GroupCreate(req, spec), None, None)
        except BaseException:
            with self._process.lock:
                self._known.pop(spec.group_id, None)
            raise

    def remove(self, group_id: bytes) -> None:
        """Remove a group; worth nothing if it is gone already."""
        self._process.node.query(lambda req: GroupRemove(req, group_id), None, None)

    def query(self, group_id: bytes = b"", name: str = "", namespace: str = "") -> list[GroupInfo]:
        """The group of an id or a name, or all that there are."""
        found: list[GroupInfo] = self._process.node.query(
            lambda req: GroupQuery(req, group_id, name, namespace), list[GroupInfo], None
        )
        return found

    def when_ready(self, group_id: bytes, value: Any) -> ObjectRef[Any]:
        """A reference to `value`, which is packed already, that is ready when a group is reserved, and fails when it is removed."""
        process = self._process
        object_id = process.context().next_put_id()
        with process.lock:
            entry = process.objects.own(object_id)
            # No task makes it, and it was not freed: its value is asked for.
            entry.fetching = True
            known = self._removed.get(group_id) or self._known.get(group_id)
            if known is None and group_id not in self._known:
                self._known[group_id] = None
                process.node.send_locked(GroupWatch(group_id))
            if known is None or not self._conclude(known, entry, value):
                self._waiting.setdefault(group_id, []).append((entry, value))
            process.reactor.flush_locked()
        return ObjectRef._of(entry, process.drop)

    def _on_change(self, change: GroupChange) -> None:
        group_id = change.group_id
        if change.state == "REMOVED":
            self._known.pop(group_id, None)
            self._removed[group_id] = change
            if len(self._removed) > _REMEMBERED:
                del self._removed[next(iter(self._removed))]
        else:
            self._known[group_id] = change
        waiting = [
            (entry, value)
            for entry, value in self._waiting.pop(group_id, [])
            if not entry.dropped and not self._conclude(change, entry, value)
        ]
        if waiting:
            self._waiting[group_id] = waiting

    def _conclude(self, change: GroupChange, entry: Entry, value: Any) -> bool:
        """Complete a reference, if a group's state is what it waits for."""
        if change.state == "CREATED":
            self._process.complete(entry, value, [], registered=True)
        elif change.state == "REMOVED":
            error = TaskPlacementGroupRemoved(
                f"placement group {change.group_id.hex()[:12]} {change.cause or 'was removed'}: it will never be ready"
            )
            self._process.complete(entry, Failed(dump_exception(error)), [], registered=True)
        else:
            return False
        return True
