"""Rows of the board as they go to the nodes: each is encoded once, however many nodes are sent it.

Every node is sent nearly every row, so encoding grows with the square of the number of nodes if it is done for each; copying what is
encoded takes a thirtieth of that. Keeps the encoding of the newest row of each node, and of no other. Used from the control
store's loop only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shoal.core.streams import Board
from shoal.messages.membership import EncodedView
from shoal.messages.placement import ViewRow

_encode: Final = msgspec.msgpack.Encoder().encode


class EncodedRows:
    """See the module's docstring."""

    def __init__(self, board: Board[ViewRow]) -> None:
        self._board = board
        self._rows: dict[bytes, tuple[ViewRow, msgspec.Raw]] = {}

    def view(self, rows: list[ViewRow], *, current: bool) -> msgspec.Raw:
        """A `View` of rows that the board has now. It may be sent to any number of nodes."""
        message = msgspec.Raw(_encode(EncodedView([self._encoded(row) for row in rows], current)))
        if len(self._rows) > len(self._board):
            self._rows = {key: kept for key, kept in self._rows.items() if key in self._board}
        return message

    def _encoded(self, row: ViewRow) -> msgspec.Raw:
        kept = self._rows.get(row.node_id)
        # A row is not changed but replaced.
        if kept is None or kept[0] is not row:
            kept = self._rows[row.node_id] = row, msgspec.Raw(_encode(row))
        return kept[1]

    def __len__(self) -> int:
        return len(self._rows)
