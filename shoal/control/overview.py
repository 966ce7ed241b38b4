"""What a control store shows of itself and its parts: its status, lists of actors, and why an actor waits.

Owns what lists show of each actor, also when it is dead; all else is read off the tables of others when somebody asks, and nothing depends
on it. What only nodes and processes know is asked by `surveys`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from shoal.control.actor_places import ActorPlaces
from shoal.control.groups import Groups
from shoal.control.jobs import Jobs
from shoal.control.nodes import Nodes
from shoal.control.storage import StorageState
from shoal.control.surveys import Surveys
from shoal.core.actor_records import Actor
from shoal.core.actors import ActorDirectory
from shoal.core.demands import IN_GROUP, Demands
from shoal.core.waits import why_actor
from shoal.messages.control import StatusOfCluster, SurveyNodes
from shoal.messages.node import ActorSpec
from shoal.messages.placement import InBundle
from shoal.messages.records import DeadActor, LivingActor
from shoal.messages.state import ACTORS, ActorRow, AskActor, Findings
from shoal.version import __version__

_MOST_DEMANDS: Final = 200
"""Different demands of actors and placement groups that the status of a cluster shows."""


class Overview:
    """See the module's docstring. `name` and `address` are those of the control store and its storage."""

    def __init__(
        self,
        name: str,
        address: str,
        storage: StorageState,
        nodes: Nodes,
        actors: ActorDirectory,
        jobs: Jobs,
        groups: Groups,
        places: ActorPlaces,
        surveys: Surveys,
    ) -> None:
        self._name = name
        self._address = address
        self._storage = storage
        self._storage_since_ns = time.time_ns()
        storage.listen(self._on_storage_state)
        self._nodes = nodes
        self._actors = actors
        self._jobs = jobs
        self._groups = groups
        self._places = places
        self._surveys = surveys
        self._rows = ActorRows()

    def _on_storage_state(self, _text: str) -> None:
        self._storage_since_ns = time.time_ns()

    def note(self, actor_id: bytes) -> None:
        """What is known of an actor has changed."""
        node_id = self._places.node_of(actor_id)
        record = self._actors.record(actor_id)
        self._rows.on_saved(actor_id, self._actors.get(actor_id), record, node_id)

    def actors(self) -> list[ActorRow]:
        """Those that live, and those that have died lately."""
        return self._rows.listed(self._places.why_unplaced)

    def survey(self, message: SurveyNodes) -> Findings | asyncio.Future[Findings]:
        """Ask the nodes; of an actor, tell what is known here, and ask on where that leads to."""
        question = message.question
        if not isinstance(question, AskActor) or message.node_ids:
            return self._surveys.ask(message)
        row = self._rows.get(question.actor_id, self._places.why_unplaced)
        if row is None:
            return Findings()
        reason = why_actor(row)
        if not reason.follow:
            return Findings(reasons=[reason])
        return self._surveys.ask(
            SurveyNodes(question, [row.node_id], message.within_ms), known=[reason]
        )

    def status(self, cluster_id: bytes) -> StatusOfCluster:
        """The cluster in one picture."""
        waiting = [
            f"{order.spec.class_name} ({order.spec.actor_id.hex()[:8]}): {reason}"
            for order, reason in islice(self._places.unplaced(), _MOST_DEMANDS)
        ]
        demands = Demands()
        self._groups.count(demands)
        self._rows.count(demands, (order.spec for order, _ in self._places.unplaced()))
        return StatusOfCluster(
            self._name,
            cluster_id,
            __version__,
            os.getpid(),
            self._address,
            self._storage.text,
            self._storage_since_ns,
            self._nodes.listed(),
            sum(1 for _ in self._actors),
            sum(1 for _ in self._jobs),
            waiting,
            self._nodes.views(),
            demands.rows(_MOST_DEMANDS),
        )


class ActorRows:
    """What lists of actors show of each, also when it is dead."""

    def __init__(self) -> None:
        self._rows: dict[bytes, ActorRow] = {}

    def on_saved(
        self,
        actor_id: bytes,
        actor: Actor | None,
        record: LivingActor | DeadActor | None,
        node_id: bytes,
    ) -> None:
        """What is known of an actor has changed; no record: nothing is known any more. `node_id` is where it was sent."""
        if record is None:
            self._rows.pop(actor_id, None)
            return
        row = self._rows.get(actor_id)
        if row is None:
            row = self._rows[actor_id] = _new_row(actor_id, actor)
        change = record.change if isinstance(record, DeadActor) else record
        if row.state != change.state:
            row.state, row.since_ns = change.state, time.time_ns()
        row.incarnation = change.incarnation
        row.address, row.pid, row.cause = change.address, change.pid, change.cause
        if node_id or row.state != "DEAD":
            row.node_id = node_id

    def count(self, demands: Demands, unplaced: Iterable[ActorSpec]) -> None:
        """Count actors that no node could take."""
        for spec in unplaced:
            row = self._rows.get(spec.actor_id)
            in_group = isinstance(spec.placement_shape.strategy, InBundle)
            demands.add(
                ACTORS,
                [(spec.placement_shape.resources, 1)],
                time.time_ns() if row is None else row.since_ns,
                name=spec.class_name,
                where=IN_GROUP if in_group else "",
                nowhere=not in_group,
            )

    def get(self, actor_id: bytes, waits: Callable[[bytes], str]) -> ActorRow | None:
        """The row of one actor, as `listed` has it."""
        row = self._rows.get(actor_id)
        if row is not None:
            row.waits = waits(actor_id)
        return row

    def listed(self, waits: Callable[[bytes], str]) -> list[ActorRow]:
        """All rows. `waits` tells why an actor waits that no node could take."""
        for row in self._rows.values():
            row.waits = waits(row.actor_id)
        return list(self._rows.values())


def _new_row(actor_id: bytes, actor: Actor | None) -> ActorRow:
    now_ns = time.time_ns()
    if actor is None:
        # It died before this control store was started.
        return ActorRow(actor_id, "", "", b"", "", "", "", False, (), now_ns)
    spec = actor.spec
    return ActorRow(
        actor_id,
        spec.class_name,
        "",
        actor.job_id,
        spec.name,
        spec.namespace,
        spec.owner,
        spec.detached,
        spec.shape.resources,
        now_ns,
    )
