"""Where a question about the cluster goes: through the node of this process, or straight to the control store of an address.

Programs that use shoal ask their node. Whoever is no process of the cluster (the command line, a program before `init`) asks the control
store, as `shoal status` does. The answers are the same.

Guarantees: every wait is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from shoal.config import load_config
from shoal.messages.control import (
    ANSWERS,
    Call,
    EndedProcess,
    JobRow,
    ListActors,
    ListEndedProcesses,
    ListGroups,
    ListJobs,
    ListNodes,
    SurveyNodes,
)
from shoal.messages.node import NodeRow, NodesQuery
from shoal.messages.placement import GroupInfo
from shoal.messages.state import ActorRow, Findings, Look, Question, Survey
from shoal.runtime.control_client import ControlClient
from shoal.runtime.joining import AUTO, find_respondent
from shoal.wire.tls import Tls

if TYPE_CHECKING:
    from shoal.runtime.process import Process

_MOST_MS: Final = 8_000
"""How long nodes may take to answer. More: slow nodes are heard, too; a node that hangs delays every answer."""

_SPARE_S: Final = 2.0


class Asker(Protocol):
    """Asks the control store something that changes nothing."""

    def ask(self, call: Call) -> Any:
        """The answer, as `ANSWERS` says."""


class Member:
    """Asks through the node of this process."""

    def __init__(self, process: Process, timeout_s: float) -> None:
        self._node = process.node
        self._timeout_s = timeout_s

    def ask(self, call: Call) -> Any:
        kind = type(call).__name__
        limit = call.limit if isinstance(call, ListEndedProcesses) else 0
        if isinstance(call, SurveyNodes):
            return self._node.query(
                lambda req: Survey(req, call.question, call.node_ids, call.within_ms),
                Findings,
                self._timeout_s,
            )
        if isinstance(call, ListNodes):
            # The node tells first what is free of it at this moment.
            return self._node.query(NodesQuery, list[NodeRow], self._timeout_s)
        return self._node.query(
            lambda req: Look(req, kind, limit), ANSWERS[type(call)], self._timeout_s
        )


class Questions:
    """What can be asked, by an `Asker`, for at most `timeout_s` each."""

    def __init__(self, asker: Asker | ControlClient, timeout_s: float) -> None:
        self._asker = asker
        self._within_ms = max(
            1, min(_MOST_MS, int((timeout_s - min(_SPARE_S, timeout_s / 4)) * 1_000))
        )

    def survey(self, question: Question, node_ids: list[bytes] | None = None) -> Findings:
        """What the nodes and their processes know."""
        found: Findings = self._asker.ask(SurveyNodes(question, node_ids or [], self._within_ms))
        return found

    def nodes(self) -> list[NodeRow]:
        """Those that live, and those that have died lately."""
        rows: list[NodeRow] = self._asker.ask(ListNodes())
        return rows

    def jobs(self) -> list[JobRow]:
        """Those that run, and those that have ended lately."""
        rows: list[JobRow] = self._asker.ask(ListJobs())
        return rows

    def actors(self) -> list[ActorRow]:
        """Those that live, and those that have died lately."""
        rows: list[ActorRow] = self._asker.ask(ListActors())
        return rows

    def groups(self) -> list[GroupInfo]:
        """All placement groups that are not forgotten."""
        rows: list[GroupInfo] = self._asker.ask(ListGroups())
        return rows

    def ended(self, limit: int) -> list[EndedProcess]:
        """Workers and drivers that have ended, the latest last."""
        rows: list[EndedProcess] = self._asker.ask(ListEndedProcesses(limit))
        return rows


@contextmanager
def visit(address: str | None) -> Iterator[ControlClient]:
    """A way to whoever answers for a cluster, for those who are no process of it. `address` is as for `find_respondent`; None is
    `$SHOAL_ADDRESS`, or "auto". The token is that of a node here, or `$SHOAL_TOKEN`.

    Raises:
        ConnectionError: there is no such cluster, or it does not answer.
        AuthenticationError: the token is another.
    """
    address = address or os.environ.get("SHOAL_ADDRESS") or AUTO
    found = find_respondent(address)
    token = found.token or os.environ.get("SHOAL_TOKEN", "").strip().encode()
    if not token:
        raise ConnectionError(
            f"there is no token for the cluster at {found.place}, of which no node runs here: set $SHOAL_TOKEN"
        )
    with ControlClient(found.place, token, Tls.of(load_config(found.tls))) as client:
        yield client
