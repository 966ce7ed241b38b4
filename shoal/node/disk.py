"""What a node's store has written to disk: how much, in how long, and how much of it is there now.

How much is there is not counted but looked up, since whoever frees a spilled object removes or shrinks a file and tells nobody.
"""

from __future__ import annotations

import logging
from typing import Final

from shoal.node.memory_reading import folder_bytes

_log = logging.getLogger("shoal.node")

_MIB: Final = 1 << 20


class SpillAccounts:
    """See the module's docstring. `directory` is the spill folder; "" if nothing is spilled.

    Attributes:
        written: Bytes that were written since the node began, but for objects that were made on disk.
        spent_ns: How long holders have written, added up.
        used: Whether anything was ever to be written.
        error: Why the disk took no more, the last time that something was written; "" if it did.
    """

    def __init__(self, directory: str) -> None:
        self.written = 0
        self.spent_ns = 0
        self.used = False
        self.error = ""
        self._directory = directory
        # Who writes: how much, and since when.
        self._orders: dict[str, tuple[int, int]] = {}

    @property
    def ordered(self) -> int:
        """Bytes that are being written, or about to be."""
        return sum(wanted for wanted, _ in self._orders.values())

    def on_order(self, holder: str, wanted: int, now: int) -> None:
        """Somebody is told to write."""
        self.on_use()
        self._orders[holder] = (wanted, now)

    def on_use(self) -> None:
        """Somebody is told to write, or to make an object on disk."""
        if not self.used:
            self.used = True
            _log.info("the object store is full: objects are written to %s", self._directory)

    def on_spilled(self, holder: str, written: int, error: str, now: int) -> None:
        """Somebody has written."""
        order = self._orders.pop(holder, None)
        if order is not None:
            self.spent_ns += now - order[1]
        self.written += written
        # How full the disk is, in parentheses, is another figure each time.
        if error and error.partition(" (")[0] != self.error.partition(" (")[0]:
            _log.warning(
                "spilling to %s has stopped after %d MiB: %s",
                self._directory,
                self.written // _MIB,
                error,
            )
        if error or written:
            self.error = error

    def on_holder_gone(self, holder: str) -> None:
        """A process has ended."""
        self._orders.pop(holder, None)

    def on_disk(self) -> int:
        """Bytes of the disk that the files there take now. Looks at each of them."""
        return folder_bytes(self._directory)
