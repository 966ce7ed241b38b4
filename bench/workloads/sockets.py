"""What the machine can do at best: two bare sockets, against which the transfer of objects is held.

One process sends a file in shared memory by ``sendfile``, another receives into a mapping of shared memory whose pages are there, both
over one TCP connection that stays open.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.measure import Batch

_SHARED_MEMORY = "/dev/shm"
_MOVED = 100_000_000


def move_100mb(_: Any) -> Iterator[Batch]:
    """100 MB from one process to another: gigabytes per second."""
    with bare_sockets(_MOVED) as move:

        def lap() -> float:
            return _MOVED / 1e9 / move()

        yield lap


@contextmanager
def bare_sockets(size: int) -> Iterator[Callable[[], float]]:
    """A function that moves `size` bytes between two processes and says how many seconds that took.

    It forks: for a process that has no threads yet.
    """
    with (
        tempfile.TemporaryFile(dir=_SHARED_MEMORY) as source,
        tempfile.TemporaryFile(dir=_SHARED_MEMORY) as target,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        for file in (source, target):
            os.posix_fallocate(file.fileno(), 0, size)
        pid = os.fork()
        if not pid:
            _send_for_ever(server, source.fileno(), size)
        with socket.create_connection(server.getsockname()) as sock:
            memory = mmap.mmap(target.fileno(), size)
            memory[:] = bytes(size)

            def move() -> float:
                start = time.perf_counter()
                sock.sendall(b"x")
                with memoryview(memory) as view:
                    done = 0
                    while done < size:
                        done += sock.recv_into(view[done:], size - done, socket.MSG_WAITALL)
                return time.perf_counter() - start

            yield move
        os.waitpid(pid, 0)
        memory.close()


def _send_for_ever(server: socket.socket, fd: int, size: int) -> None:
    sock, _ = server.accept()
    while sock.recv(1):
        done = 0
        while done < size:
            done += os.sendfile(sock.fileno(), fd, done, size - done)
    os._exit(0)
