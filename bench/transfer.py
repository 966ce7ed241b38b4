"""``python -m bench.transfer``: how fast 100 MB come from one node to another, beside two bare sockets.

Both move the same bytes over the same loopback interface, from shared memory to shared memory, in turns: A B A B … The bare side is what
the kernel can do at best: one process sends a file by ``sendfile``, another receives into a mapping whose pages are there, both
over one connection that stays open. shoal's side is a whole ``get`` of a task's result that lies at the other node: the question to
the daemon, its question to the other daemon, the transfer, and mapping the copy.

Prints the median of each, in GB/s, and that of the quotients of neighbours, since other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import shoal
from shoal.testing.cluster import Cluster

_SHARED_MEMORY = "/dev/shm"
_ROOM = 1 << 30


@contextmanager
def bare_sockets(size: int) -> Iterator[Callable[[], float]]:
    """A function that moves `size` bytes between two processes and says how many seconds that took."""
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


@shoal.remote(resources={"there": 1})
def _make(size: int) -> Any:
    return np.ones(size, dtype=np.uint8)


def _get(size: int) -> float:
    ref = _make.remote(size)
    shoal.wait([ref], fetch_local=False)
    start = time.perf_counter()
    value = shoal.get(ref)
    took = time.perf_counter() - start
    assert value[-1] == 1
    return took


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="100 MB from node to node, beside bare sockets.")
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    size = options.mb * 1_000_000
    # The sockets first: they fork, and the driver has threads.
    with (
        bare_sockets(size) as move,
        Cluster(head_node_args={"num_cpus": 1, "object_store_memory": _ROOM}) as cluster,
    ):
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=_ROOM)
        cluster.wait_for_nodes()
        with cluster.connect():
            for _ in range(3):
                move(), _get(size)
            pairs = [(move(), _get(size)) for _ in range(options.times)]
    ratio = statistics.median(bare / ours for bare, ours in pairs)
    bare, ours = (
        statistics.median(size / 1e9 / took for took in side) for side in zip(*pairs, strict=True)
    )
    print(f"bare sockets {bare:.2f} GB/s, get {ours:.2f} GB/s: {ratio:.0%}")


if __name__ == "__main__":
    main()
