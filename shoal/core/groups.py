"""Placement groups: bundles of resources, reserved on their nodes all together or not at all.

::

                  all bundles are reserved             a node with a bundle dies
    PENDING ────────────────────────────────► CREATED ──────────────────────────► RESCHEDULING
       │                                        │ ▲ └──── what it lost is reserved anew ───┘
       └────────────── removed ◄────────────────┘               │
                                     REMOVED ◄──────────────────┘

A *round* reserves what a group misses, in two phases. Its nodes are chosen from the view (`core.bundle_placing`) and asked to
prepare. When all have, they are told to commit, and the group is CREATED: no node can refuse any more. If one refuses, dies or does
not answer in time, all that the round reserved is released, and after a while another round is tried.

Guarantees
- All or nothing: in no state does a group keep a part of what a round reserved.
- Rounds are numbered, and answers of past ones do nothing. What is sent to a node arrives in order; so a release ends whatever was asked
  for before it, answered or not.
- A group can be removed at any time, and everything of it is released. It ends with its job unless it is detached; a name belongs to
  one group of a namespace that is not removed.
- What a node turns out to hold that is not ours is released (`on_node_back`), so a restart of either side loses nothing.

Groups that found no way are tried again in the order in which they came, when rows have changed. None waits for those before it, so a
stream of small groups can keep a large one waiting; it is told what it waits for.

The shell keeps the view: it gives it rows before it calls `on_prepared` or `on_refused` with their versions. It carries out the
effects in `outbox`, in order, and writes a group's `record` down before anybody hears of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from shoal.core.bundle_placing import STRATEGIES, place, why_impossible
from shoal.core.bundles import ALL
from shoal.core.group_records import (
    MOVES,
    Commit,
    Effect,
    Group,
    GroupChanged,
    GroupImpossible,
    GroupLimits,
    GroupState,
    Prepare,
    Release,
    Round,
)
from shoal.core.resources import Amounts, check_amounts
from shoal.core.view import View
from shoal.errors import InternalError
from shoal.messages.placement import BundleHeld, GroupRecord, GroupSpec

if TYPE_CHECKING:
    from random import Random

_LOOK_AT_ONCE: Final = 16
"""How many groups look at once when bundles were released; the others when their time comes. More: room is used sooner when many
wait, and each release costs more then."""

_UNSETTLED = frozenset({GroupState.PENDING, GroupState.RESCHEDULING})


class GroupTable:
    """See the module's docstring. `view` is the control store's, which has no local node."""

    def __init__(self, view: View, limits: GroupLimits, rng: Random) -> None:
        self.outbox: list[Effect] = []
        self._view = view
        self._limits = limits
        self._rng = rng
        self._groups: dict[bytes, Group] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        # Those that miss something, in the order in which they came; and those of them that a round is under way for.
        self._unsettled: dict[bytes, Group] = {}
        self._rounds: dict[bytes, Group] = {}
        self._removed: dict[bytes, None] = {}
        # Raised whenever there may be a way where there was none.
        self._seen = 0

    # --- events from users ---------------------------------------------------------------------------------------

    def on_create(self, spec: GroupSpec, now: int) -> str:
        """Make a group. Returns "", or why it cannot be made. The same request once more changes nothing."""
        if spec.group_id in self._groups:
            return ""
        fault = _fault(spec)
        if fault:
            return f"ValueError: {fault}"
        name = (spec.namespace, spec.name)
        if spec.name and name in self._names:
            return (
                f"ValueError: a placement group named {spec.name!r} exists in namespace {spec.namespace!r} already; "
                "remove that one first, or choose another name"
            )
        group = self._groups[spec.group_id] = Group(spec, now)
        self._unsettled[spec.group_id] = group
        if spec.name:
            self._names[name] = spec.group_id
        self.outbox.append(GroupChanged(spec.group_id))
        return ""

    def on_remove(self, group_id: bytes, cause: str, now: int) -> None:
        """A group is not needed any more, whatever it is doing. `cause` is a clause: "was removed"."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return
        nodes = dict.fromkeys(node_id for node_id in group.places if node_id)
        if group.round is not None:
            nodes.update(dict.fromkeys(item.node_id for item in group.round.placed))
            self._end_round(group)
        for node_id in nodes:
            self.outbox.append(Release(node_id, group_id, ALL))
        group.places = [b""] * len(group.places)
        group.cause = cause
        if group.spec.name:
            del self._names[group.spec.namespace, group.spec.name]
        self._move(group, GroupState.REMOVED, now)
        self._removed[group_id] = None
        if len(self._removed) > self._limits.remembered:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._groups[oldest]
        self._seen += 1

    def on_job_gone(self, job_id: bytes, cause: str, now: int) -> None:
        """A job has ended, and with it its groups, but for those that are detached."""
        for group in list(self._groups.values()):
            if group.spec.job_id == job_id and not group.spec.detached:
                self.on_remove(group.spec.group_id, cause, now)

    # --- events from nodes ---------------------------------------------------------------------------------------

    def on_view_changed(self) -> None:
        """Rows have changed: there may be room where there was none."""
        self._seen += 1

    def on_released(self, now: int) -> None:
        """A node has given bundles up, and the view shows it: those that found no room, and have waited longest, may look at once. (Those
        whose round failed have just released what they had, and wait, or they would begin again for ever.)"""
        self._seen += 1
        if len(self._unsettled) > len(self._rounds):
            waiting = (
                group
                for group in self._unsettled.values()
                if group.round is None and not group.refusals
            )
            for group in islice(waiting, _LOOK_AT_ONCE):
                group.retry_at = min(group.retry_at, now)

    def on_prepared(
        self, node_id: bytes, group_id: bytes, attempt: int, version: int, now: int
    ) -> None:
        """A node has reserved what it was asked for; its rows from `version` on show it."""
        group = self._in_round(node_id, group_id, attempt)
        if group is None:
            return
        assert group.round is not None
        group.round.unanswered.pop(node_id, None)
        group.round.versions[node_id] = version
        if not group.round.unanswered:
            self._commit(group, now)

    def on_refused(
        self, node_id: bytes, group_id: bytes, attempt: int, version: int, now: int
    ) -> None:
        """A node has reserved nothing, since it lacks the room; its rows from `version` on show that."""
        group = self._in_round(node_id, group_id, attempt)
        if group is None:
            return
        assert group.round is not None
        group.round.versions[node_id] = version
        self._abort(group, now)

    def on_node_gone(self, node_id: bytes, now: int) -> None:
        """A node has died. (Its deductions went with it from the view.)"""
        for group in list(self._rounds.values()):
            assert group.round is not None
            if any(item.node_id == node_id for item in group.round.placed):
                self._abort(group, now)
        for group in list(self._groups.values()):
            if node_id in group.places:
                self._lose(group, node_id, now)

    def on_node_back(self, node_id: bytes, held: Iterable[BundleHeld], now: int) -> None:
        """A node, after this control store or the connection was gone, says what it holds. What is not ours is released; what
        is ours and not there has to be reserved anew. A round that it takes part in begins again."""
        for group in list(self._rounds.values()):
            assert group.round is not None
            if any(item.node_id == node_id for item in group.round.placed):
                self._abort(group, now)
        found: dict[bytes, set[int]] = {}
        stale: dict[tuple[bytes, int], None] = {}
        for bundle in held:
            group_or_none = self._groups.get(bundle.group_id)
            places = group_or_none.places if group_or_none is not None else []
            if bundle.index < len(places) and places[bundle.index] == node_id:
                found.setdefault(bundle.group_id, set()).add(bundle.index)
                if not bundle.committed:
                    self.outbox.append(Commit(node_id, bundle.group_id, bundle.attempt))
            else:
                stale[bundle.group_id, bundle.attempt] = None
        for group_id, attempt in stale:
            self.outbox.append(Release(node_id, group_id, attempt))
        for group in list(self._groups.values()):
            here = {index for index, place in enumerate(group.places) if place == node_id}
            if here - found.get(group.spec.group_id, set()):
                # The bundles of a round are lost together.
                self.outbox.append(Release(node_id, group.spec.group_id, ALL))
                self._lose(group, node_id, now)

    def _lose(self, group: Group, node_id: bytes, now: int) -> None:
        """A node has lost what a group had there."""
        group.places = [b"" if place == node_id else place for place in group.places]
        if group.round is not None:
            # The round does not know of what is missing since.
            self._abort(group, now)
        group.retry_at = now
        self._seen += 1
        if group.state is GroupState.CREATED:
            group.since = now
            self._move(group, GroupState.RESCHEDULING, now)
            self._unsettled[group.spec.group_id] = group
        else:
            self.outbox.append(GroupChanged(group.spec.group_id))

    def _in_round(self, node_id: bytes, group_id: bytes, attempt: int) -> Group | None:
        group = self._rounds.get(group_id)
        if group is None or group.round is None or group.round.attempt != attempt:
            return None
        return group if node_id in group.round.unanswered else None

    # --- rounds --------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Begin rounds, and end those that take too long. The shell calls this after every batch of events and at
        `next_deadline`."""
        while (first := self._first_deadline()) is not None and first <= now:
            self._abort(next(iter(self._rounds.values())), now)
        if len(self._unsettled) == len(self._rounds):
            # Nobody waits for a round: the most frequent case by far, and there may be thousands of both.
            return
        for group in list(self._unsettled.values()):
            if group.round is None and group.retry_at <= now and group.seen != self._seen:
                self._begin(group, now)

    def next_deadline(self) -> int | None:
        """When to call `advance` though nothing happened."""
        first = self._first_deadline()
        times = [] if first is None else [first]
        if len(self._unsettled) > len(self._rounds):
            times.extend(
                group.retry_at
                for group in self._unsettled.values()
                if group.round is None and group.seen != self._seen
            )
        return min(times, default=None)

    def _first_deadline(self) -> int | None:
        """When the first round is over. All rounds take as long at most, so the oldest is the first."""
        group = next(iter(self._rounds.values()), None)
        return None if group is None or group.round is None else group.round.deadline

    def _begin(self, group: Group, now: int) -> None:
        spec = group.spec
        held = {index: node_id for index, node_id in enumerate(group.places) if node_id}
        placed = place(self._view, spec, group.missing, dict.fromkeys(held.values()), self._rng)
        if placed is None:
            group.seen = self._seen
            # Soon, at first: what was released a moment ago may be in the next rows.
            group.retry_at = now + (self._limits.retry_ns << min(group.failures, 4))
            group.failures += 1
            if group.generation != self._view.generation:
                group.generation = self._view.generation
                reason = why_impossible(self._view, spec, held)
                if reason and reason != group.told:
                    self.outbox.append(GroupImpossible(spec.group_id, reason))
                group.told = reason
            return
        group.attempt += 1
        group.round = Round(group.attempt, placed, now + self._limits.prepare_timeout_ns)
        self._rounds[spec.group_id] = group
        orders: dict[bytes, list[tuple[int, Amounts]]] = {}
        for index, node_id, _ in placed:
            orders.setdefault(node_id, []).append((index, spec.bundles[index].resources))
        for node_id, bundles in orders.items():
            self.outbox.append(
                Prepare(node_id, spec.group_id, group.attempt, tuple(sorted(bundles)))
            )

    def _commit(self, group: Group, now: int) -> None:
        round_ = group.round
        assert round_ is not None
        for index, node_id, _ in round_.placed:
            group.places[index] = node_id
        self._end_round(group)
        for node_id in dict.fromkeys(item.node_id for item in round_.placed):
            self.outbox.append(Commit(node_id, group.spec.group_id, round_.attempt))
        group.refusals = group.failures = 0
        del self._unsettled[group.spec.group_id]
        self._move(group, GroupState.CREATED, now)

    def _abort(self, group: Group, now: int) -> None:
        round_ = group.round
        assert round_ is not None
        for node_id in dict.fromkeys(item.node_id for item in round_.placed):
            if self._view.get(node_id) is not None:
                self.outbox.append(Release(node_id, group.spec.group_id, round_.attempt))
        self._end_round(group)
        most = self._limits.retry_most_ns
        group.retry_at = now + min(most, self._limits.retry_ns << min(group.refusals, 20))
        group.refusals += 1
        # What it had asked for is free again, for itself too.
        self._seen += 1

    def _end_round(self, group: Group) -> None:
        round_ = group.round
        assert round_ is not None
        group.round = None
        del self._rounds[group.spec.group_id]
        for _, node_id, deduction in round_.placed:
            self._view.settle(deduction, round_.versions.get(node_id, 0))

    # --- states --------------------------------------------------------------------------------------------------

    def _move(self, group: Group, state: GroupState, now: int) -> None:
        """The only writer of a group's state."""
        if state not in MOVES[group.state]:
            told = ", ".join(f"{old.value} at {at}" for at, old in group.story)
            raise InternalError(
                f"placement group {group.spec.group_id.hex()[:12]} cannot go from {group.state.value} to "
                f"{state.value} (its story: {told})"
            )
        group.state = state
        group.story.append((now, state))
        if state is GroupState.REMOVED:
            self._unsettled.pop(group.spec.group_id, None)
        self.outbox.append(GroupChanged(group.spec.group_id))

    # --- storage -------------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[GroupRecord], now: int) -> None:
        """The groups of an earlier control store, in the order in which they came. Rounds that were under way are over: the nodes
        claim what they hold (`on_node_back`), and the number of the next round is higher than any they can know."""
        assert not self._groups
        for record in records:
            spec = record.spec
            group = self._groups[spec.group_id] = Group(spec, now)
            group.state = GroupState(record.state)
            group.places = list(record.places)
            # Rounds are not written down before their nodes are asked, so that some may have been used up since.
            group.attempt = record.attempt + _ATTEMPTS_UNWRITTEN
            group.cause = record.cause
            if group.state is GroupState.REMOVED:
                self._removed[spec.group_id] = None
                continue
            if spec.name:
                self._names[spec.namespace, spec.name] = spec.group_id
            if group.state in _UNSETTLED:
                self._unsettled[spec.group_id] = group

    def record(self, group_id: bytes) -> GroupRecord | None:
        """A group as it is written down and told; none if it is forgotten."""
        group = self._groups.get(group_id)
        if group is None:
            return None
        return GroupRecord(
            group.spec, group.state.value, list(group.places), group.attempt, group.cause
        )

    # --- questions -----------------------------------------------------------------------------------------------

    def records(self) -> Iterator[GroupRecord]:
        """All groups that are remembered."""
        for group_id in self._groups:
            record = self.record(group_id)
            assert record is not None
            yield record

    def unsettled(self) -> Iterator[Group]:
        """Those that miss something, in the order in which they came."""
        return iter(self._unsettled.values())

    def find(self, name: str, namespace: str) -> bytes | None:
        """The group of that name."""
        return self._names.get((namespace, name))

    def explain(self, group_id: bytes) -> str:
        """Why a group is not CREATED, as a sentence; "" if it is."""
        group = self._groups.get(group_id)
        if group is None:
            return "there is no such placement group."
        if group.state is GroupState.CREATED:
            return ""
        if group.state is GroupState.REMOVED:
            return f"it {group.cause}."
        lost = group.state is GroupState.RESCHEDULING
        waits = f"{len(group.missing)} of its {len(group.places)} bundles have no node" + (
            " since one died" if lost else ""
        )
        before = 0
        for other in self._unsettled:
            if other == group_id:
                break
            before += 1
        ahead = f"; {before} groups asked before it" if before else ""
        if group.round is not None:
            nodes = ", ".join(node_id.hex()[:12] for node_id in group.round.unanswered)
            return f"{waits}; they are being reserved, and these nodes have not answered yet: {nodes}{ahead}."
        held = {index: node_id for index, node_id in enumerate(group.places) if node_id}
        reason = why_impossible(self._view, group.spec, held)
        if reason:
            return f"{waits}; {reason}"
        if group.refusals:
            return f"{waits}; {group.refusals} times in a row a node had less room than it had said{ahead}."
        return f"{waits}, and the cluster has no room for them now ({group.spec.strategy}){ahead}."

    def check(self) -> None:
        """Assert the invariants."""
        deadlines = [group.round.deadline for group in self._rounds.values() if group.round]
        assert deadlines == sorted(deadlines)
        assert len(deadlines) == len(self._rounds)
        assert self._rounds.keys() <= self._unsettled.keys()
        for group_id, group in self._groups.items():
            assert group_id == group.spec.group_id
            assert (group.state in _UNSETTLED) == (group_id in self._unsettled)
            assert (group.round is not None) == (group_id in self._rounds)
            assert (group.state is GroupState.REMOVED) == (group_id in self._removed)
            if group.state is GroupState.CREATED:
                assert not group.missing
                assert group.round is None
            if group.state is GroupState.REMOVED:
                assert not any(group.places)
            if group.spec.name and group.state is not GroupState.REMOVED:
                assert self._names[group.spec.namespace, group.spec.name] == group_id
            if group.round is not None:
                assert group.round.unanswered
                assert group.round.attempt == group.attempt
                assert sorted(item.bundle for item in group.round.placed) == group.missing
            filled = [node_id for node_id in group.places if node_id]
            if group.spec.strategy == "STRICT_SPREAD":
                assert len(set(filled)) == len(filled)
            if group.spec.strategy == "STRICT_PACK":
                assert len(set(filled)) <= 1
        assert len(self._names) == sum(
            bool(group.spec.name) and group.state is not GroupState.REMOVED
            for group in self._groups.values()
        )


_ATTEMPTS_UNWRITTEN = 1_000_000
"""More rounds than a group can have had since it was last written down."""


def _fault(spec: GroupSpec) -> str:
    if spec.strategy not in STRATEGIES:
        return f"strategy {spec.strategy!r} is none of {', '.join(STRATEGIES)}"
    if not spec.bundles:
        return "a placement group needs at least one bundle"
    for index, bundle in enumerate(spec.bundles):
        try:
            check_amounts(bundle.resources)
        except ValueError as error:
            return f"bundle {index}: {error}"
        if not any(amount for _, amount in bundle.resources):
            return f"bundle {index} asks for nothing; give it at least one resource, such as {{'CPU': 1}}"
    return ""
