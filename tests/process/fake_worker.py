"""A worker without the runtime: registers, obeys the node, and runs the Python that a test sends to its socket.

The node's machinery is what these tests are about; with a worker this simple, what goes wrong in them is the node's.
"""

from __future__ import annotations

import glob
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from shoal.messages.boot import WorkerBoot
from shoal.messages.node import ActorStarted, Exit, Retire, StartActor
from shoal.runtime.session_folder import session_root
from shoal.wire.addresses import name_of
from shoal.wire.session import HEAD, socket_path
from tests.process.node_client import NodeClient

PROGRAM = (
    "import sys; sys.path += [p for p in sys.argv[1:] if p not in sys.path]; "
    "from tests.process.fake_worker import load; from shoal.node.head import main; main(load)"
)


def load() -> Callable[[WorkerBoot], None]:
    return run


def run(boot: WorkerBoot) -> None:
    if os.environ.get("FAKE_WORKER_DIES"):
        print("dying at the start, as told", file=sys.stderr)
        os._exit(7)
    if os.environ.get("FAKE_WORKER_HANGS"):
        time.sleep(3600)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(socket_path(os.path.dirname(boot.node_path), name_of(boot.address)))
    listening.listen()
    node = NodeClient(boot.node_path, boot.token, boot.address)
    node.register_worker(boot.worker_id)
    # A thread of its own, so that the worker obeys the node while it runs a test's code.
    threading.Thread(target=_obey, args=(node,), daemon=True).start()
    scope = {"node": node, "boot": boot, "os": os, "sys": sys, "time": time}
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                exec(line.encode().decode("unicode_escape"), scope)
                stream.write("done\n")
                stream.flush()


def _obey(node: NodeClient) -> None:
    while True:
        if not node.heard:
            select.select([node.sock], [], [])
            try:
                node.read()
            except ConnectionError:
                os._exit(3)
        while node.heard:
            message = node.heard.pop(0)
            if isinstance(message, Exit | Retire):
                if not os.environ.get("FAKE_WORKER_IGNORES_EXIT"):
                    sys.stdout.flush()
                    os._exit(0)
            elif isinstance(message, StartActor):
                spec = message.spec
                failed = spec.class_name == "Broken"
                error, cause = (b"pickled", "ValueError: no") if failed else (b"", "")
                if spec.class_name != "Slow":
                    node.send(ActorStarted(spec.actor_id, message.incarnation, error, cause))


def tell(address: str, code: str, *, wait: bool = True) -> None:
    """Run `code` (in one line) in the worker at `address`; `wait` until it has run."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(_socket_of(address))
        sock.sendall(code.encode("unicode_escape") + b"\n")
        if wait:
            assert sock.recv(16).startswith(b"done")


def _socket_of(address: str) -> str:
    """The one in a session of this process: workers of others may have the same name."""
    for path in glob.glob(socket_path(f"{session_root()}/s-*", name_of(address))):
        head = Path(path).parent / HEAD
        if head.exists() and psutil.Process(int(head.read_text())).ppid() == os.getpid():
            return path
    raise AssertionError(f"no session of this process has {address}")
