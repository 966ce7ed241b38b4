"""Answers to whoever only looks (`shoal status`, `shoal memory`): he says `Ask` on a connection where others join or register.

Come to the control store's port, or to `node.onlookers` in a session of one program. The token is proved before
anything is read; nothing that changes anything is answered. Nobody registers, so nothing is left of a visitor who has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shoal.control.link import ControlError
from shoal.errors import ProtocolError
from shoal.messages.control import (
    Call,
    ClusterStatus,
    ListActors,
    ListEndedProcesses,
    ListGroups,
    ListJobs,
    ListNodes,
    SurveyNodes,
)
from shoal.messages.membership import Answer, Ask
from shoal.wire.aio import PeerConnection

_log = logging.getLogger("shoal.control")
_encode: Final = msgspec.msgpack.Encoder().encode

LOOKS: Final = (
    ClusterStatus,
    ListNodes,
    ListJobs,
    ListActors,
    ListEndedProcesses,
    ListGroups,
    SurveyNodes,
)
"""What may be asked by anybody who has the token."""


class Visitors:
    """See the module's docstring. `call` asks the control store."""

    def __init__(self, call: Callable[[Call], asyncio.Future[Any]]) -> None:
        self._call = call

    def on_ask(self, connection: PeerConnection, message: Ask) -> None:
        """A question; answered when the answer is there."""
        if not isinstance(message.call, LOOKS):
            raise ProtocolError(f"{type(message.call).__name__} from somebody who only looks")
        answer = self._call(message.call)
        answer.add_done_callback(
            lambda done: None if done.cancelled() else connection.send(answer_of(message.req, done))
        )


def answer_of(req: int, done: asyncio.Future[Any]) -> Answer:
    """What a question is answered by, when it is. A defect of ours is told as such, and logged."""
    error = done.exception()
    if error is None:
        return Answer(req, _encode(done.result()), "")
    if isinstance(error, ControlError):
        return Answer(req, b"", error.text)
    _log.error("a question could not be answered", exc_info=error)
    return Answer(req, b"", f"InternalError: {error!r}")
