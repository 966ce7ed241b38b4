"""`LoggingConfig`: one look for the log records of a driver and of its workers."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.messages.node import LogFormat
from shoal.runtime.log_records import JsonFormatter, TextFormatter, install
from tests.api.scripts import run_script

PROGRAM = """
    import logging
    import shoal

    log = logging.getLogger("mine")
    shoal.init(num_cpus=2, namespace="test", logging_config=shoal.LoggingConfig({options}))


    @shoal.remote
    def work():
        log.info("in a task", extra={{"step": 3}})
        log.debug("too small")
        return shoal.get_runtime_context().get_task_id()


    @shoal.remote
    class Actor:
        def work(self):
            log.warning("in an actor")


    actor = Actor.options(name="its name").remote()
    print("task", shoal.get(work.remote(), timeout=30))
    shoal.get(actor.work.remote(), timeout=30)
    log.info("in the driver")
    print("job", shoal.get_runtime_context().get_job_id())
    print("actor", actor._actor_id.hex())
    shoal.shutdown()
    log.warning("after the session")
"""

_PREFIX = re.compile(r"^\S* ?\([^)]*pid=\d+\) ")


def run_program(folder: Path, options: str) -> tuple[dict[str, str], list[str]]:
    """The ids that the program printed, and the lines that it and its workers logged."""
    result = run_script(folder, PROGRAM.format(options=options))
    ids = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    return ids, [_PREFIX.sub("", line) for line in result.stderr.splitlines()]


def test_json_lines_say_where_they_come_from(tmp_path: Path) -> None:
    ids, lines = run_program(tmp_path, 'encoding="JSON", additional_log_standard_attrs=["name"]')
    assert lines.pop() == "after the session"
    records = {record["message"]: record for record in map(json.loads, lines)}
    assert set(records) == {"in a task", "in an actor", "in the driver"}
    task, actor, driver = (records[f"in {name}"] for name in ("a task", "an actor", "the driver"))
    for record in records.values():
        assert record["job_id"] == ids["job"]
        assert record["name"] == "mine"
        assert record["filename"] == "script.py"
        assert record["lineno"] > 1
    assert len({record["worker_id"] for record in records.values()}) == 3
    assert len({record["node_id"] for record in records.values()}) == 1
    assert task["task_id"] == ids["task"]
    assert task["task_name"] == task["task_func_name"] == "work"
    assert (task["levelname"], task["step"]) == ("INFO", 3)
    assert "actor_id" not in task
    assert actor["actor_id"] == ids["actor"]
    assert actor["actor_name"] == "its name"
    assert (actor["task_name"], actor["task_func_name"]) == ("Actor.work", "work")
    assert "task_id" not in driver


def test_text_lines(tmp_path: Path) -> None:
    ids, lines = run_program(tmp_path, 'log_level="WARNING"')
    assert lines.pop() == "after the session"
    [line] = lines
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING script\.py:\d+ -- in an actor job_id=", line
    )
    assert f" actor_id={ids['actor']} " in line


# --- the formatters, without a session ---------------------------------------------------------------------------------------


def a_record(**extra: Any) -> logging.LogRecord:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("mine", logging.ERROR, "/a/b.py", 7, "%s of two", ("one",), info)
    vars(record).update(extra)
    return record


def test_a_traceback_stays_on_the_line_in_json() -> None:
    thing = object()
    line = JsonFormatter(["process"]).format(a_record(thing=thing, text="a\nb"))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "one of two"
    assert found["exc_text"].endswith("ValueError: wrong")
    assert found["thing"] == repr(thing)
    assert found["text"] == "a\nb"
    assert isinstance(found["process"], int)
    assert "job_id" not in found


def test_a_traceback_follows_the_line_in_text() -> None:
    first, *rest = TextFormatter(["levelno"]).format(a_record(step=1)).splitlines()
    assert first.endswith("ERROR b.py:7 -- one of two levelno=40 step=1")
    assert rest[-1] == "ValueError: wrong"


def test_what_was_there_comes_back() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    restore = install(LogFormat("TEXT", logging.ERROR, []))
    try:
        assert root.level == logging.ERROR
        assert len(root.handlers) == 1
    finally:
        restore()
    assert (root.level, root.handlers) == before


# --- misuse ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoding": "XML"}, "use 'TEXT' or 'JSON'"),
        ({"log_level": "LOUD"}, "use one of .*INFO"),
        ({"additional_log_standard_attrs": ["nam"]}, "no attribute 'nam'; they have .*name"),
    ],
)
def test_values_that_it_cannot_have(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shoal.LoggingConfig(**options)


def test_only_a_logging_config_is_one() -> None:
    with pytest.raises(TypeError, match=r"must be a shoal\.LoggingConfig, not 'JSON'"):
        shoal.init(num_cpus=1, logging_config="JSON")  # type: ignore[arg-type]  # the error that is tested
    assert not shoal.is_initialized()
