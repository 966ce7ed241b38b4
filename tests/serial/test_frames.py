"""pandas and pyarrow, where they are installed: their columns go beside the stream and come back as views."""

from __future__ import annotations

import pytest

from shoal.serial import serialize
from tests.serial.ways import WAYS, Way


@pytest.mark.parametrize("way", WAYS)
def test_pandas(way: Way) -> None:
    pandas = pytest.importorskip("pandas", exc_type=ImportError)
    frame = pandas.DataFrame({"a": range(10_000), "b": [1.5] * 10_000, "c": ["text"] * 10_000})
    pandas.testing.assert_frame_equal(way(frame), frame)
    pandas.testing.assert_frame_equal(way([frame[::2]])[0], frame[::2])
    assert serialize(frame[["a", "b"]]).buffers


@pytest.mark.parametrize("way", WAYS)
def test_arrow(way: Way) -> None:
    arrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    table = arrow.table({"a": list(range(10_000)), "b": ["text"] * 10_000})
    assert way(table).equals(table)
    assert way({"t": table.slice(10, 20)})["t"].equals(table.slice(10, 20))
    assert serialize(table).buffers
