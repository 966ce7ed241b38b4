"""The way between a node and the control store: calls with an answer, posts without, and orders the other way.

The node depends on these two protocols and on `shoal.messages.control`, not on where the control store runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from shoal.messages.control import Call, Order, Post

OnOrder = Callable[[Order], None]


class ControlError(Exception):
    """A call was refused. `text` is "ErrorClass: what and why", as `Reply.error` carries it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class ControlUnreachable(ConnectionError):  # noqa: N818 - named after what is the case
    """There is no control store where there should be one: where, for how long it was tried, why, and what to look at."""


class NotAdmitted(Exception):  # noqa: N818 - named after what is the case
    """The control store does not want this node: a sentence that says why."""


class ControlLink(Protocol):
    """A node's end of the way. What is called and posted takes effect in order."""

    def call(self, message: Call) -> asyncio.Future[Any]:
        """Ask; the future gets the answer, or a `ControlError`."""

    def post(self, message: Post) -> None:
        """Tell."""

    def close(self) -> None:
        """No more orders come, and no answers."""
