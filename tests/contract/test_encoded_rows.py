"""Rows of nodes, encoded once for all whom they are sent to."""

from __future__ import annotations

import msgspec
import pytest

import shoal.control.encoded_rows as module
from shoal.control.encoded_rows import EncodedRows
from shoal.core.streams import Board
from shoal.messages.membership import ToMember, View
from shoal.messages.placement import ViewRow

CPU = {"CPU": 40_000}


def row(number: int, version: int = 1) -> ViewRow:
    free = {"CPU": version}
    return ViewRow(
        bytes([number]) * 16, version, CPU, free, {"zone": "a"}, 1, 2, 3, groups={b"g": free}
    )


def board_of(*rows: ViewRow) -> Board[ViewRow]:
    board: Board[ViewRow] = Board()
    for each in rows:
        board.put(each.node_id, each)
    return board


@pytest.mark.parametrize("current", [False, True])
def test_what_is_sent_is_a_view_like_any_other(current: bool) -> None:
    board = board_of(row(1), row(2))
    message = EncodedRows(board).view(board.rows(), current=current)
    batch = msgspec.msgpack.encode([message])
    assert batch == msgspec.msgpack.encode([View(board.rows(), current)])
    (decoded,) = msgspec.msgpack.decode(batch, type=list[ToMember])
    assert decoded == View(board.rows(), current)


def test_a_row_is_encoded_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    real = module._encode

    def count(value: object) -> bytes:
        if isinstance(value, ViewRow):
            encoded.append(value.node_id[0])
        return real(value)

    monkeypatch.setattr(module, "_encode", count)
    board = board_of(row(1), row(2), row(3))
    rows = EncodedRows(board)
    rows.view(board.rows(), current=False)
    rows.view(board.since(1), current=True)
    assert encoded == [1, 2, 3]
    changed = row(2, version=2)
    board.put(changed.node_id, changed)
    message = rows.view(board.since(0), current=True)
    assert encoded == [1, 2, 3, 2]
    assert msgspec.msgpack.decode(message, type=View).rows == [row(1), row(3), changed]


def test_rows_of_nodes_that_are_gone_are_not_kept() -> None:
    board = board_of(*(row(number) for number in range(50)))
    rows = EncodedRows(board)
    rows.view(board.rows(), current=False)
    for number in range(49):
        board.discard(bytes([number]) * 16)
    rows.view(board.rows(), current=False)
    assert len(rows) == 1
