"""The places over which the contract suite runs: where a storage keeps things, apart from any one storage object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shoal.control.storage import Storage


class Place(NamedTuple):
    """`open` makes a storage over this place that was not loaded yet, as a control store would that starts there."""

    kind: str
    open: Callable[[], Storage]
