from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from shoal.serial.inspection import Failure, inspect_serializability

if TYPE_CHECKING:
    import pytest

LOCK = threading.Lock()


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


def inspect(value: Any, **options: Any) -> tuple[bool, set[Failure], str]:
    out = io.StringIO()
    ok, failures = inspect_serializability(value, print_file=out, **options)
    return ok, failures, out.getvalue()


def test_what_can_be_sent() -> None:
    assert inspect([1, {"k": print}], name="x") == (
        True,
        set(),
        "x: can be sent to other processes.\n",
    )


def test_every_part_in_the_way_is_listed() -> None:
    other = threading.RLock()
    value = {"a": [LOCK, 1], "b": Holder(other), "c": 3}
    ok, failures, report = inspect(value, name="config")
    assert not ok
    assert {(failure.name, failure.obj) for failure in failures} == {("0", LOCK), ("held", other)}
    by_name = {failure.name: failure for failure in failures}
    assert by_name["held"].parent is value["b"]
    assert by_name["0"].parent is value["a"]
    assert by_name["held"].path == ("dict key 'b'", "attribute .held")
    assert isinstance(by_name["held"].error, TypeError)
    assert report.startswith("config: cannot be sent to other processes. 2 parts stand in the way:")
    assert "1. dict key 'a' -> list item 0 -> object of type _thread.lock\n   Why: " in report
    assert repr(by_name["held"]).startswith("Failure('held': dict key 'b' -> attribute .held")


def test_functions_are_named_by_themselves() -> None:
    lock = LOCK

    def function() -> Any:
        return lock

    _, failures, report = inspect(function)
    assert report.startswith("test_functions_are_named_by_themselves.<locals>.function: cannot")
    assert [failure.name for failure in failures] == ["lock"]


def test_the_root_itself() -> None:
    _, failures, report = inspect(LOCK)
    (failure,) = failures
    assert failure.obj is LOCK
    assert failure.parent is None
    assert "One part stands in the way" in report


def test_depth_bounds_the_search() -> None:
    value: Any = LOCK
    for _ in range(5):
        value = [value]
    _, failures, report = inspect(value, depth=2)
    (failure,) = failures
    assert failure.obj == [[[LOCK]]]
    assert "a depth above 2 looks further" in report
    _, failures, _ = inspect(value, depth=5)
    assert next(iter(failures)).obj is LOCK


def test_the_list_is_bounded() -> None:
    _, failures, report = inspect([threading.Lock() for _ in range(100)])
    assert len(failures) == 20
    assert "At least 20 parts" in report


def test_it_prints_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_serializability(1, name="one")
    assert capsys.readouterr().out == "one: can be sent to other processes.\n"
