"""What daemons say: on standard error, which is a file in their folder, and bounded: a full file is kept as one older one."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from shoal.wire.session import private


class _BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]  # generic for type checkers only
    """Standard error, if that is the file at `path`. Python's own rotating handler would bring pickle along."""

    def __init__(self, path: str, most_bytes: int) -> None:
        super().__init__(sys.stderr)
        self._path = path
        self._most_bytes = most_bytes

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        # Elsewhere (a terminal, a test's pipe) there is nothing to rotate; a full disk is no reason to stop.
        with contextlib.suppress(OSError):
            found = os.fstat(2)
            if found.st_size > self._most_bytes and os.path.samestat(found, os.stat(self._path)):
                os.replace(self._path, f"{self._path}.1")
                fd = private(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.dup2(fd, 2)
                os.close(fd)


def log_to(path: str, most_bytes: int) -> None:
    """Begin to log, in the process of a daemon."""
    logging.basicConfig(
        handlers=[_BoundedLog(path, most_bytes)],
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        level=logging.INFO,
    )
