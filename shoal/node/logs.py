"""What workers print: read from their pipes, kept in files, and passed on line by line.

A worker's stream may say whose output follows: a line `0x1E shoal:<name>` is taken out and names the task or actor that
prints from there on.

Guarantees: reading never blocks the event loop; lines of one stream stay in order; a line longer than
`MAX_LINE_BYTES` is cut into several; a file is rotated at its limit, so a worker keeps at most two of that size for each
stream; when a worker is gone, everything that it had written has been passed on before `close` returns.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import BinaryIO, Final

from shoal.wire.session import private

MAX_LINE_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 64 * 1024
_MARK: Final = b"\x1eshoal:"

OnLines = Callable[[int, str, int, list[str]], None]
"""Takes pid, source, stream (1 or 2) and lines."""


class LogFile:
    """An append-only file, made when something is written, that keeps one older file when it is full."""

    def __init__(self, path: str, rotate_bytes: int) -> None:
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append."""
        if self._file is None:
            self._file = self._open()
            self._size = self._file.tell()
        elif self._size + len(data) > self._rotate_bytes:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._open()
            self._size = 0
        self._file.write(data)
        self._size += len(data)

    def _open(self) -> BinaryIO:
        return open(self._path, "ab", buffering=0, opener=private)

    def close(self) -> None:
        """Close."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LogStream:
    """One output stream of one worker: owns the read end of its pipe."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        stream: int,
        open_file: Callable[[int, int], LogFile],
        on_lines: OnLines,
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._stream = stream
        self._open_file = open_file
        self._on_lines = on_lines
        self._file: LogFile | None = None
        self._pid = 0
        self._source = ""
        self._partial = b""

    def start(self, pid: int) -> None:
        """The worker's process exists: read what it prints. Not before, since the pid names its files and lines."""
        self._pid = pid
        self._loop.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Read what is still in the pipe, pass it on, and close it. Called when the worker is gone: another process
        that holds the pipe (one that left the worker's group) is not waited for."""
        if self._fd < 0:
            return
        while self._read():
            pass
        self._stop()

    def _on_readable(self) -> None:
        if self._read() is None:
            self._stop()

    def _stop(self) -> None:
        if self._fd < 0:
            return
        if self._partial:
            self._take(b"\n")
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._file is not None:
            self._file.close()

    def _read(self) -> bool | None:
        """Read once: whether there was something, None at the end of the stream."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return None
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        *lines, partial = (self._partial + data).split(b"\n")
        if len(partial) > MAX_LINE_BYTES:
            lines.append(partial)
            partial = b""
        self._partial = partial
        printed: list[bytes] = []
        for line in lines:
            mark = line.find(_MARK)
            if mark < 0:
                printed.append(line)
                continue
            if mark:
                # Printed without a newline, before the name changed.
                printed.append(line[:mark])
            self._pass_on(printed)
            printed = []
            self._source = line[mark + len(_MARK) :].decode(errors="replace")
        self._pass_on(printed)

    def _pass_on(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._file is None:
            self._file = self._open_file(self._pid, self._stream)
        try:
            self._file.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            # A full disk must not stop what the user sees.
            lines = [*lines, f"[shoal could not write this worker's log file: {error}]".encode()]
        texts = [text for line in lines for text in _cut(line)]
        self._on_lines(self._pid, self._source, self._stream, texts)


def _cut(line: bytes) -> list[str]:
    return [
        line[start : start + MAX_LINE_BYTES].decode(errors="replace")
        for start in range(0, max(1, len(line)), MAX_LINE_BYTES)
    ]


class WorkerLogs:
    """Both streams of one worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: str,
        rotate_bytes: int,
        on_lines: OnLines,
    ) -> None:
        def open_file(pid: int, stream: int) -> LogFile:
            return LogFile(f"{folder}/worker-{pid}.{'out' if stream == 1 else 'err'}", rotate_bytes)

        self.write_ends: list[int] = []
        self._streams: list[LogStream] = []
        try:
            for stream in (1, 2):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                self.write_ends.append(write_end)
                self._streams.append(LogStream(loop, read_end, stream, open_file, on_lines))
        except OSError:
            self.close()
            for fd in self.write_ends:
                os.close(fd)
            raise

    def start(self, pid: int) -> None:
        """The worker's process exists."""
        for stream in self._streams:
            stream.start(pid)

    def close(self) -> None:
        """The worker is gone: pass on the rest and close the pipes."""
        for stream in self._streams:
            stream.close()
