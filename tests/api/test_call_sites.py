"""Where objects were made, recorded and not recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import shoal
from shoal.util import state
from shoal.util.memory import memory_report
from tests.api.gates import wait_until

PATIENCE_S = 30


def line() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


@shoal.remote
def one() -> int:
    return 1


@shoal.remote
def two() -> tuple[int, int]:
    return 1, 2


@shoal.remote
def items() -> Iterator[int]:
    yield from range(2)


@shoal.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: Any = None

    def keep(self, box: Any) -> None:
        self.kept = box

    def put(self) -> Any:
        self.kept = shoal.put("by the actor")
        return [self.kept]


@pytest.mark.cluster(_system_config={"record_call_sites": True})
@pytest.mark.usefixtures("cluster")
def test_every_way_to_make_an_object_is_known_by_its_line() -> None:
    start = line()
    put = shoal.put(1)
    task = one.remote()
    first, second = two.options(num_returns=2).remote()
    keeper = Keeper.options(num_cpus=0).remote()
    call = keeper.keep.remote([put])
    generator = items.remote()
    item = next(generator)
    where = f"{__file__}:{{}} in test_every_way_to_make_an_object_is_known_by_its_line"
    made = {put: 1, task: 2, first: 3, second: 3, call: 5, item: 6}
    for ref, lines in made.items():
        assert ref.call_site() == where.format(start + lines)
    shoal.get(call, timeout=PATIENCE_S)
    with state.asking(None, PATIENCE_S) as questions:
        report = memory_report(questions)
    found = {one.object_id: one for one in report.objects}
    for ref, lines in made.items():
        assert found[ref.hex()].call_site == where.format(start + lines)
        assert found[ref.hex()].age_s is not None
    (handle,) = [one for one in report.objects if one.location == "ACTOR"]
    assert handle.call_site == where.format(start + 4)
    group = next(one for one in report.groups("call-site") if one.group == where.format(start + 3))
    assert group.count == 2
    # How long it has been borrowed is known, too.
    assert "borrowed by actor Keeper" in found[put.hex()].why
    assert " s), which has 1 reference" in found[put.hex()].why
    (row,) = [row for row in state.get_objects(put.hex()) if row.is_owner]
    assert row.call_site == where.format(start + 1)
    assert row.age_s is not None
    (inner,) = shoal.get(keeper.put.remote(), timeout=PATIENCE_S)

    def site() -> str | None:
        rows = state.get_objects(inner.hex())
        return next((row.call_site for row in rows if row.is_owner), None)

    wait_until(lambda: site() is not None, "the actor has it")
    assert str(site()).endswith("in Keeper.put")


@pytest.mark.usefixtures("cluster")
def test_nothing_is_recorded_unless_it_is_wanted() -> None:
    ref = shoal.put(1)
    result = one.remote()
    assert ref.call_site() == result.call_site() == ""
    assert not hasattr(ref._entry, "site")
    (row,) = state.get_objects(ref.hex())
    assert (row.call_site, row.age_s) == ("", None)
    with state.asking(None, PATIENCE_S) as questions:
        groups = [group.group for group in memory_report(questions).groups("call-site")]
    assert "(not recorded)" in groups
