"""How log records of a job look, and the root logger that writes them: the same in the driver and in its workers.

Each line says where it was logged: in which job, process, task and actor. One handler, on standard error, takes the place of those
that the root logger had; what workers write there reaches the driver like everything else that they print.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shoal.messages.node import LogFormat
from shoal.runtime import current_process

STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message"}
"""What every record has; anything else in one was given as `extra`."""

_TEXT: Final = "%(asctime)s %(levelname)s %(filename)s:%(lineno)s -- %(message)s"
_JSON: Final = ("levelname", "message", "filename", "lineno")


def where() -> dict[str, str]:
    """Ids and names of what runs here; empty outside of a session."""
    process = current_process.process
    if process is None:
        return {}
    context = process.context()
    found = {
        "job_id": process.job_id.hex(),
        "worker_id": (process.worker_id or process.root.task_id).hex(),
        "node_id": process.node_id.hex(),
    }
    if context.kind in {"task", "actor"}:
        found["task_id"] = context.task_id.hex()
        found["task_name"] = context.name
        found["task_func_name"] = context.function_name
    if context.actor_id is not None:
        found["actor_id"] = context.actor_id.hex()
        if process.host is not None and process.host.spec.name:
            found["actor_name"] = process.host.spec.name
    return found


def _fields(record: logging.LogRecord, attributes: list[str]) -> dict[str, Any]:
    """What a line says beyond its message."""
    fields: dict[str, Any] = {name: getattr(record, name, None) for name in attributes}
    fields.update(where())
    for name, value in vars(record).items():
        if name not in STANDARD and name not in fields:
            fields[name] = value
    return fields


class TextFormatter(logging.Formatter):
    """A line of text, with fields as `name=value` at its end."""

    def __init__(self, attributes: list[str]) -> None:
        super().__init__(_TEXT)
        self._attributes = attributes

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """The line; a traceback may follow it."""
        fields = _fields(record, self._attributes)
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])


class JsonFormatter(logging.Formatter):
    """A JSON object on one line; a traceback is its field `exc_text`."""

    def __init__(self, attributes: list[str]) -> None:
        super().__init__()
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        """The line. What JSON cannot say is written as its `repr`."""
        record.message = record.getMessage()
        line: dict[str, Any] = {
            "asctime": self.formatTime(record),
            "timestamp_ns": int(record.created * 1e9),
        }
        line.update((name, getattr(record, name)) for name in _JSON)
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        line.update(_fields(record, self._attributes))
        return msgspec.json.encode(line, enc_hook=repr).decode()


def install(wanted: LogFormat) -> Callable[[], None]:
    """Set the root logger up; what is returned puts back what was there."""
    kind = JsonFormatter if wanted.encoding == "JSON" else TextFormatter
    handler = logging.StreamHandler()
    handler.setFormatter(kind(wanted.attributes))
    root = logging.getLogger()
    level, others = root.level, list(root.handlers)
    for other in others:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(wanted.level)

    def restore() -> None:
        root.removeHandler(handler)
        handler.close()
        for other in others:
            root.addHandler(other)
        root.setLevel(level)

    return restore
