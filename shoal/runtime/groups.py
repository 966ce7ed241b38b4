"""Placement groups as the processes see them that use them: what the node tells of each, and who waits for that.

Threads: `create`, `remove`, `query` and `when_ready` are called by user threads and take the lock; the handler is called with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.core.references import Entry
from shoal.errors import ShoalError, TaskPlacementGroupRemoved
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

_SMALL_BYTES: Final = 64 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode


class Groups:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        # Groups that are watched: None until the node has told.
        self._known: dict[bytes, GroupChange | None] = {}
        self._removed: dict[bytes, GroupChange] = {}
        # Those that we have made and heard nothing of.
        self._on_way: dict[bytes, None] = {}
        self._waiting: dict[bytes, list[tuple[Entry, Any]]] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {GroupChange: self._on_change}

    def create(self, spec: GroupSpec) -> None:
        """Make a group; it need not be reserved when this returns. With a name, it is accepted then; without, there is nothing that speaks
        against it, and nobody waits for the control store.

        Raises:
            ValueError: it cannot be made; says why.
        """
        process = self._process
        group_id = spec.group_id
        with process.lock:
            # Whoever makes a group watches it, the node sees to that.
            self._known[group_id] = None
            if not spec.name and not process.node.lost and _is_small(spec):
                self._on_way[group_id] = None
                process.node.send_locked(GroupCreate(0, spec))
                process.reactor.flush_locked()
                return
        try:
            process.node.query(lambda req: GroupCreate(req, spec), None, None)
        except BaseException:
            with process.lock:
                self._known.pop(group_id, None)
            raise

    def await_accepted(self, group_id: bytes) -> None:
        """Before others hear of a group: the control store must know it when they ask. (It takes what comes by way of this node in
        order.)"""
        if group_id in self._on_way:
            self.query(group_id)
            self._on_way.pop(group_id, None)

    def remove(self, group_id: bytes) -> None:
        """Remove a group; worth nothing if it is gone already. It is on the way when this returns."""
        process = self._process
        with process.lock:
            if process.node.lost:
                raise ShoalError(process.node.lost)
            process.node.send_locked(GroupRemove(0, group_id))
            process.reactor.flush_locked()

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
        self._on_way.pop(group_id, None)
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


def _is_small(spec: GroupSpec) -> bool:
    """Whether it can surely be sent. If not, whoever makes the group waits, and hears of it."""
    try:
        return len(_encode(spec)) <= _SMALL_BYTES
    except UnicodeEncodeError:
        return False
