"""Where work and bundles are: what the tests of placement share."""

from __future__ import annotations

from typing import Any

import shoal
from shoal.util import placement_group_table
from shoal.util.placement_group import PlacementGroup
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.api.gates import Gate, Trace

PATIENCE_S = 30


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=PATIENCE_S)


def within(group: PlacementGroup, index: int = -1, capture: bool | None = None) -> Any:
    return PlacementGroupSchedulingStrategy(group, index, capture)


def places(group: PlacementGroup) -> list[str]:
    """The nodes of a group's bundles, once they are reserved."""
    assert group.wait(PATIENCE_S), placement_group_table(group)["waits"]
    by_index = placement_group_table(group)["bundles_to_node_id"]
    return [by_index[index] for index in range(group.bundle_count)]


@shoal.remote
def where() -> str:
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
class Resident:
    def where(self) -> str:
        return shoal.get_runtime_context().get_node_id()

    def hold(self, gate: Gate, began: Trace) -> None:
        began.add("call")
        gate.wait()
