"""`LoggingConfig`: how a job logs, in its driver and its workers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from shoal.messages.node import LogFormat
from shoal.runtime.log_records import STANDARD

_ENCODINGS: Final = ("TEXT", "JSON")


@dataclass(frozen=True)
class LoggingConfig:
    """How a job logs: `shoal.init(logging_config=LoggingConfig(encoding="JSON"))`.

    It sets up the root loggers of the driver and of all workers to write one line a record on standard error, with the ids of
    the job, the process, the task and the actor.

    Attributes:
        encoding: "TEXT" or "JSON" (an object on each line).
        log_level: The least level that is written, such as "INFO".
        additional_log_standard_attrs: More attributes of `logging.LogRecord` to write, such as "name" or "process".

    Raises:
        ValueError: one of them has a value that it cannot have.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(
                f"encoding={self.encoding!r} is not one; use {' or '.join(map(repr, _ENCODINGS))}"
            )
        levels = logging.getLevelNamesMapping()
        if self.log_level not in levels:
            raise ValueError(
                f"log_level={self.log_level!r} is not a level; use one of {', '.join(levels)}"
            )
        unknown = set(self.additional_log_standard_attrs) - STANDARD
        if unknown:
            raise ValueError(
                f"log records have no attribute {', '.join(map(repr, sorted(unknown)))}; they have "
                f"{', '.join(sorted(STANDARD))}"
            )

    def _format(self) -> LogFormat:
        """What processes must know of it."""
        level = logging.getLevelNamesMapping()[self.log_level]
        return LogFormat(self.encoding, level, list(self.additional_log_standard_attrs))
