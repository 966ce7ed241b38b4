"""Why a task, an actor or a placement group waits: one step after the other, until something is found that waits for nothing else.

Each step is an answer of the process or node that knows (`shoal.messages.state.Reason`), and may name where to ask on: a task waits for an
argument, which another task makes, which waits for a worker, whose request is in the queue of a node, where others hold the CPUs.

Guarantees: so many steps at most, and no question twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from shoal.core.resources import amounts_text
from shoal.core.waits import why_actor, why_group
from shoal.messages.state import AskWhy, Follow, Reason
from shoal.runtime.asking import Questions

_SHORTEST: Final = 4
_OF_TASK: Final = 26
"""Digits of an id that name the task; the rest number its results."""
_MOST_STEPS: Final = 24


@dataclass(frozen=True)
class Step:
    """One step of an explanation. Times are seconds.

    Attributes:
        subject: What waits.
        kind: What for, in a word (see `shoal.core.waits`): "dependency", "resource", "nowhere", "worker start", …
        text: The same in a sentence.
        depth: How many steps led here.
        node_id: Where it waits, in hexadecimal digits; "" if that is nowhere in particular.
        waits_s: For how long, None if nobody knows.
        ahead: How many others are served before it, None if nobody knows.
        holders: Who has what it waits for.
    """

    subject: str
    kind: str
    text: str
    depth: int
    node_id: str = ""
    waits_s: float | None = None
    ahead: int | None = None
    holders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        facts = []
        if self.waits_s is not None:
            facts.append(f"for {_seconds(self.waits_s)}")
        if self.ahead is not None:
            facts.append(f"{self.ahead} ahead")
        if self.node_id:
            facts.append(f"node {self.node_id[:8]}")
        where = f" [{', '.join([self.kind, *facts])}]"
        indent = "    " * self.depth
        lines = [f"{indent}{self.subject}: {self.text}{where}"]
        lines += [f"{indent}    held by {holder}" for holder in self.holders]
        return "\n".join(lines)


class Explanation(list[Step]):
    """The steps, in their order; as text, a line or more for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def explain(questions: Questions, id_: str) -> Explanation:
    """Why it waits: a task, an actor, a placement group, or an object (by the task that makes it). The first digits of the id are enough.

    Raises:
        ValueError: it is no id, or several begin with it, or nothing that waits, runs or is remembered does.
    """
    id_ = id_.strip().lower()
    if len(id_) < _SHORTEST or set(id_) - set("0123456789abcdef"):
        raise ValueError(
            f"{id_!r} is not the id of a task, actor or placement group, nor the beginning of one: that is at least {_SHORTEST} "
            "hexadecimal digits"
        )
    steps = Explanation()
    asked: set[str] = set()
    open_: list[tuple[int, Follow]] = [(0, Follow(AskWhy(id_)))]
    while open_ and len(steps) < _MOST_STEPS:
        depth, follow = open_.pop()
        if repr(follow) in asked:
            continue
        asked.add(repr(follow))
        reasons = _ask(questions, follow)
        if not depth and len({reason.subject.rpartition("(")[2] for reason in reasons}) > 1:
            found = ", ".join(sorted({reason.subject for reason in reasons}))
            raise ValueError(
                f"several ids begin with {id_}: {found}. Give more digits of the one that is meant"
            )
        # What its owner says first, then the process that runs it, which knows since when.
        for reason in sorted(reasons, key=lambda reason: reason.since_ns):
            steps.append(_step(reason, depth))
            # The last one in is the next one out: in reverse, so that what is told first is followed first.
            open_ += [(depth + 1, more) for more in reversed(reason.follow)]
    if not steps:
        raise ValueError(
            f"no task that waits or runs, no actor and no placement group has an id that begins with {id_}. It may have finished, or its "
            "owner has ended: `shoal list tasks` shows what is remembered"
        )
    return steps


def _ask(questions: Questions, follow: Follow) -> list[Reason]:
    question = follow.question
    if not isinstance(question, AskWhy):
        return questions.survey(question, [follow.node_id] if follow.node_id else None).reasons
    reasons = [
        why_actor(row) for row in questions.actors() if row.actor_id.hex().startswith(question.id)
    ]
    reasons += [
        why_group(info)
        for info in questions.groups()
        if info.record.spec.group_id.hex().startswith(question.id)
    ]
    if not reasons or len(question.id) < _OF_TASK:
        found = questions.survey(AskWhy(question.id[:_OF_TASK]))
        reasons += found.reasons
        if not reasons and found.silent:
            text = (
                f"nobody who answered knows it; {', '.join(found.silent)} did not answer in time."
            )
            reasons = [Reason(f"the task {question.id[:_OF_TASK]}", "lost", text)]
    return reasons


def _step(reason: Reason, depth: int) -> Step:
    now_ns = time.time_ns()
    holders = [
        f"the worker with pid {holder.pid} (leased for {holder.name or 'a task'}): {amounts_text(holder.resources)}, "
        f"for {_seconds((now_ns - holder.since_ns) / 1e9)}"
        for holder in reason.holders
    ]
    return Step(
        reason.subject,
        reason.kind,
        reason.text,
        depth,
        reason.node_id.hex(),
        max(0.0, (now_ns - reason.since_ns) / 1e9) if reason.since_ns else None,
        reason.ahead if reason.ahead >= 0 else None,
        holders,
    )


def _seconds(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
