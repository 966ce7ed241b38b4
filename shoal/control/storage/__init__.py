"""Where the control store writes down what must outlive it.

A backend stores bytes under (table, key). It knows nothing of what the bytes mean. What every backend guarantees, and
`tests/contract` asks of each:

- a commit is applied as a whole or not at all, and commits are applied in the order in which they were given;
- when the future of a commit is done, it and everything before it survive the end of the control store's process (and what
  else they survive, the backend's docstring says), and are there at the next `load`;
- a commit takes effect once, however often it had to be tried;
- of two control stores over one place, at most one can write: the other is told so by a `StorageError`;
- a storage that goes away is tried again for a bounded time, during which futures stay undone and `state` says "retrying: …".
  After that the futures fail, the state is "failed: …", and every later commit fails as well.

Which backend an address means is decided in `opening`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

OK: Final = "ok"
FAILED: Final = "failed: "
"""How the state begins of a storage that does nothing more; then follows why."""

Tables = dict[str, dict[bytes, bytes]]
"""Values by table and key."""


class Write(NamedTuple):
    """Set a key of a table, or delete it (`value` is none)."""

    table: str
    key: bytes
    value: bytes | None


class StorageError(Exception):
    """The storage cannot be used: what happened, why, and what to do next. The types below say whose turn it is."""


class StorageAddressError(StorageError, ValueError):
    """The address is not one that shoal understands: misuse."""


class StorageInUse(StorageError):  # noqa: N818 - in use it is, before anything goes wrong
    """Another living control store writes there."""


class StorageUnavailable(StorageError):  # noqa: N818 - named after what is the case
    """It cannot be reached, or takes no writes, and has been tried for as long as is allowed."""


class LeadershipLost(StorageError):  # noqa: N818 - named after what is the case
    """Another control store has taken over. This one must not speak for the cluster any more."""


class StorageState:
    """How the storage is: "ok", "waiting: …", "retrying: …" or "failed: …". `status` shows it.

    Belongs to the event loop: `become` is called there, and so are the listeners.
    """

    __slots__ = ("_listeners", "text")

    def __init__(self) -> None:
        self.text = OK
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call this with every new text."""
        self._listeners.append(listener)

    def become(self, text: str) -> None:
        """The storage is like this from now on. One that has failed stays so."""
        if text == self.text or self.text.startswith("failed:"):
            return
        self.text = text
        for listener in self._listeners:
            listener(text)


class Storage(Protocol):
    """One backend. All methods are called in the event loop, and none blocks it."""

    @property
    def state(self) -> StorageState:
        """How it is."""

    async def load(self) -> Tables:
        """Open it, and return everything there is. Called once, before the first commit.

        Raises:
            StorageError: it cannot be opened, or another control store has it.
        """

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None] | None:
        """Write; the future is done when it is durable. None if it is already, which spares memory the event loop.

        No writes are a commit too: its future is done when all before it is durable.
        """

    async def close(self) -> None:
        """Finish what was committed, and let go."""
