"""Asks nodes what they know, and puts their answers together.

Every question has a time limit, after which whoever has not answered is named as silent; a node that leaves so many questions open
is not asked more. Nothing here is written down, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from shoal.control.nodes import Nodes
from shoal.core.findings import cut_down, take_in
from shoal.messages.control import NodeFound, Order, SurveyNode, SurveyNodes
from shoal.messages.state import (
    AskDemands,
    AskMemory,
    AskObjects,
    AskTasks,
    AskWorkers,
    Findings,
    Question,
    Reason,
)

_MOST_OPEN: Final = 16
"""Questions that may be open at one node. More: several observers at once; a node that takes nothing has that many wait for it."""

_MOST_MS: Final = 60_000

_MOST_ROWS: Final = 100_000
"""Rows of one answer, some 15 MB of tasks. More: a longer timeline; the control store does nothing else while it takes that apart."""


class _Open:
    """A question that is not answered yet."""

    __slots__ = ("answer", "asked", "findings", "question", "timer")

    def __init__(self, question: Question, answer: asyncio.Future[Findings]) -> None:
        self.question = question
        self.answer = answer
        self.findings = Findings([], [], [], [], processes=[], stores=[])
        # By node, how it is called.
        self.asked: dict[bytes, str] = {}
        self.timer: asyncio.TimerHandle | None = None


class Surveys:
    """See the module's docstring. `order` gives an order to a node."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nodes: Nodes,
        order: Callable[[bytes, Order], None],
    ) -> None:
        self._loop = loop
        self._nodes = nodes
        self._order = order
        self._numbers = itertools.count(1)
        self._open: dict[int, _Open] = {}
        self._open_at: dict[bytes, int] = {}

    def ask(self, message: SurveyNodes, known: Sequence[Reason] = ()) -> asyncio.Future[Findings]:
        """Ask; the answer comes in time, and after what is known already."""
        answer: asyncio.Future[Findings] = self._loop.create_future()
        number = next(self._numbers)
        question = message.question
        if isinstance(question, AskTasks | AskObjects | AskWorkers | AskDemands | AskMemory):
            question.limit = min(question.limit, _MOST_ROWS)
        survey = self._open[number] = _Open(question, answer)
        survey.findings.reasons += known
        within_ms = min(max(message.within_ms, 1), _MOST_MS)
        for row in self._nodes.living():
            node_id = row.node_id
            if message.node_ids and node_id not in message.node_ids:
                continue
            if self._open_at.get(node_id, 0) >= _MOST_OPEN:
                survey.findings.silent.append(
                    f"node {row.name} (it has not answered what it was asked)"
                )
                continue
            self._open_at[node_id] = self._open_at.get(node_id, 0) + 1
            survey.asked[node_id] = f"node {row.name or node_id.hex()[:8]}"
            self._order(node_id, SurveyNode(number, question, within_ms * 9 // 10))
        survey.timer = self._loop.call_later(within_ms / 1_000, self._finish, number)
        self._look(number, survey)
        return answer

    def on_found(self, node_id: bytes, message: NodeFound) -> None:
        """A node answers."""
        self._settle(node_id)
        survey = self._open.get(message.number)
        if survey is None:
            # Too late.
            return
        name = survey.asked.pop(node_id, None)
        if name is None:
            return
        take_in(survey.findings, message.findings)
        survey.findings.silent += [f"{who} on {name}" for who in message.findings.silent]
        self._look(message.number, survey)

    def on_node_gone(self, node_id: bytes) -> None:
        """A node will not answer any more."""
        self._open_at.pop(node_id, None)
        for number, survey in list(self._open.items()):
            name = survey.asked.pop(node_id, None)
            if name is not None:
                survey.findings.silent.append(f"{name} (it has ended)")
                self._look(number, survey)

    def _settle(self, node_id: bytes) -> None:
        left = self._open_at.get(node_id, 0) - 1
        if left > 0:
            self._open_at[node_id] = left
        else:
            self._open_at.pop(node_id, None)

    def _look(self, number: int, survey: _Open) -> None:
        if not survey.asked:
            self._finish(number)

    def _finish(self, number: int) -> None:
        survey = self._open.pop(number)
        if survey.timer is not None:
            survey.timer.cancel()
        found = survey.findings
        found.silent += survey.asked.values()
        cut_down(found, survey.question)
        if not survey.answer.done():
            survey.answer.set_result(found)
