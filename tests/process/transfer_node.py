"""A node daemon reduced to its transfers, in a process of its own, and the handle by which a test drives it.

The process has a real door, a real store with quotas, and clients that exist in name only: the test says what they say. A line of JSON
is a command, `[number, method, arguments…]`; its answer is `[number, result]`, in any order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from shoal.config import Config
from shoal.messages.boot import Boot
from shoal.messages.node import Job
from shoal.messages.transfer import Pull, PullDone, Pulled, Why
from shoal.messages.values import Location
from shoal.node.clients import Clients
from shoal.node.doorkeeper import Doorkeeper
from shoal.node.memory_reading import folder_bytes
from shoal.node.store import StoreKeeper
from shoal.node.transfer.links import open_bulk
from shoal.node.transfer.service import Transfers
from shoal.store import Arena, QuotaExhausted, Reader, copy_into, shm_directory, spilling
from shoal.wire.addresses import make_address, make_place
from shoal.wire.session import name_elsewhere, spill_path
from shoal.wire.tls import Tls
from tests.wire.doors import turn_away

MB: Final = 1 << 20
TOKEN: Final = b"t" * 32
PATIENCE_S: Final = 60.0
MAKER: Final = "w-aaaaaaaa"
JOB: Final = Job(b"j" * 16, "default", [], "/")


def content(size: int, seed: int) -> bytes:
    """What an object of the tests holds."""
    return np.random.default_rng(seed).bytes(size)


def digest(data: Any) -> str:
    """Of an object's bytes."""
    return hashlib.blake2b(data).hexdigest()


class _Connection:
    """Where messages to a client end up."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.send = send


class _Program:
    """What runs in the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, setup: dict[str, Any]) -> None:
        self.loop = loop
        self.directory = shm_directory(setup["name"])
        config = Config(**setup["config"])
        door = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.place = make_place("127.0.0.1", door.getsockname()[1])
        session_dir = setup["session_dir"]
        boot = Boot(
            TOKEN,
            "s-1",
            session_dir,
            str(self.directory),
            -1,
            0,
            {},
            [],
            {},
            setup["store_bytes"],
            config,
        )
        spill_directory = Path(spill_path(session_dir)) if config.spill else None
        if spill_directory is not None:
            spill_directory.mkdir(mode=0o700)
        self.clients = Clients()
        self.keeper = StoreKeeper(loop, boot, self.clients)
        tls = Tls.of(config)
        self.transfers = Transfers(
            loop,
            self.clients,
            self.keeper,
            setup.get("token", TOKEN.decode()).encode(),
            make_address(self.place, "n-" + setup["digits"]),
            self.directory,
            spill_directory,
            config,
            lambda place: open_bulk(place, 5.0, None if tls is None else tls.client),
            None if tls is None else tls.server,
        )
        self.doorkeeper = Doorkeeper(
            loop,
            door,
            "/",
            "n-" + setup["digits"],
            turn_away,
            self.transfers.accept_bulk,
            config.door_strangers,
        )
        self.maker = Arena(self.directory, setup["maker"], setup["maker_bytes"])
        self.maker_name = "w-" + setup["maker"]
        self.reader = Reader(self.directory, spill_directory)
        self.views: dict[int, memoryview] = {}
        self.pulled: dict[tuple[int, int], Future[Pulled]] = {}
        self.client_of: dict[int, Any] = {}

    def client(self, number: int) -> Any:
        """A client, known by a number of the test's."""
        if number not in self.client_of:

            def on_message(message: Any) -> None:
                assert isinstance(message, Pulled)
                self.pulled[number, message.req].set_result(message)

            self.client_of[number] = self.clients.add(
                _Connection(on_message),  # type: ignore[arg-type]  # all that a client uses of it
                make_address(self.place, f"d-{number:08x}"),
                number,
                JOB,
            )
        return self.client_of[number]

    # --- commands ------------------------------------------------------------------------------------------------

    def put(self, size: int, seed: int) -> tuple[Any, ...]:
        block = self.maker.create(size)
        copy_into(block.buffer, memoryview(content(size, seed)))
        return msgspec.structs.astuple(block.location)

    def free(self, fields: list[Any]) -> None:
        self.maker.free(Location(*fields))
        self.transfers.on_freed([Location(*fields)])

    def fill(self, size: int) -> str:
        """Take so much of the store as a client would; "" or why not."""
        try:
            self.maker.create(size)
        except QuotaExhausted as error:
            return str(error)
        return ""

    def begin(self, client: int, req: int, creator: str, fields: list[Any], why: int) -> None:
        self.pulled[client, req] = Future()
        self.transfers.on_pull(self.client(client), Pull(req, Location(*fields), creator, Why(why)))

    async def pull(
        self, client: int, req: int, creator: str, fields: list[Any], why: int = 0
    ) -> list[Any]:
        """The digest of the copy; its view is kept until `drop`."""
        if (client, req) not in self.pulled:
            self.begin(client, req, creator, fields, why)
        answer = await asyncio.wrap_future(self.pulled[client, req])
        del self.pulled[client, req]
        if answer.location is None:
            return [None, answer.error, answer.cause]
        view = self.views[req] = self.reader.view(answer.location)
        self.done(client, req)
        return [await self.loop.run_in_executor(None, digest, view), "", ""]

    async def time_pull(self, creator: str, fields: list[Any]) -> float:
        """How long it takes, in seconds; the copy is dropped."""
        start = self.loop.time()
        self.begin(0, 0, creator, fields, 0)
        answer = await asyncio.wrap_future(self.pulled[0, 0])
        took = self.loop.time() - start
        assert answer.location is not None, answer.error
        self.done(0, 0)
        self.transfers._pulls.on_room_wanted(1 << 60)
        self.transfers._drain()
        return took

    def done(self, client: int, req: int) -> None:
        self.transfers.on_done(self.client(client), PullDone(req))

    def digest_of(self, req: int) -> str:
        return digest(self.views[req])

    def drop(self, req: int) -> None:
        del self.views[req]

    def client_gone(self, number: int) -> None:
        client = self.client_of.pop(number)
        self.clients.remove(client)
        self.transfers.on_client_gone(client)

    def neighbour_gone(self, place: str, cause: str) -> None:
        self.transfers.on_neighbour_gone(place, cause)

    def received(self, place: str, fields: list[Any]) -> int:
        """How many bytes of a copy are here; -1 without one."""
        found = self.transfers._incoming.get((place, Location(*fields)))  # type: ignore[call-overload]  # a plain tuple is as good
        return -1 if found is None else found.received

    def facts(self) -> dict[str, int]:
        self.transfers._pulls.check()
        self.transfers._uploads.check()
        arena = self.transfers._arena
        stats = arena.stats() if arena is not None else None
        return {
            "copies": len(self.transfers._incoming),
            "live_bytes": stats.live_bytes if stats else 0,
            "quota_bytes": stats.quota_bytes if stats else 0,
            "attempts": len(self.transfers._attempts),
            "uploads": len(self.transfers._uploads._active),
            "threads": threading.active_count(),
            "spilled_bytes": stats.spilled_bytes if stats else 0,
        }

    def small_disk(self, size: int) -> None:
        """The disk has room for so many bytes in all, and nothing else is on it."""
        spilling._disk = lambda folder: (folder_bytes(str(folder)), size)  # type: ignore[assignment]  # a smaller disk

    def sweep(self) -> None:
        """The maker has ended, and its job with it."""
        self.keeper.on_estate_gone(self.maker_name[2:], "")

    def served(self) -> int:
        """How many connections of others there are for objects."""
        return len(self.transfers._servings)

    def stop(self) -> None:
        self.doorkeeper.close()
        self.transfers.close()
        self.keeper.close()
        self.views.clear()
        self.reader.close()
        self.maker.close(unlink=True)
        self.loop.call_soon(self.loop.stop)


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    loop = asyncio.new_event_loop()
    box: list[_Program] = []

    async def make() -> None:
        box.append(_Program(loop, setup))

    loop.run_until_complete(make())
    program = box[0]

    def say(number: int, result: Any) -> None:
        sys.stdout.write(json.dumps([number, result]) + "\n")
        sys.stdout.flush()

    async def obey(number: int, method: str, *args: Any) -> None:
        try:
            result = getattr(program, method)(*args)
            if asyncio.iscoroutine(result):
                result = await result
        except Exception as error:  # noqa: BLE001 - the test shall see it
            result = {"error": repr(error)}
        say(number, result)

    tasks: set[Any] = set()

    def begin(command: list[Any]) -> None:
        task = loop.create_task(obey(*command))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(begin, json.loads(line))
        # The test has ended without a word.
        loop.call_soon_threadsafe(loop.stop)

    threading.Thread(target=read, daemon=True).start()
    say(0, [program.place, str(program.directory), program.maker_name])
    loop.run_forever()
    os._exit(0)


class TransferNode:
    """The handle of such a process."""

    def __init__(
        self,
        digits: str,
        *,
        store_bytes: int = 256 * MB,
        maker_bytes: int = 128 * MB,
        token: bytes = TOKEN,
        session_dir: str = "",
        **config: Any,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.transfer_node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: dict[int, Future[Any]] = {0: Future()}
        self._number = 0
        self._write(
            {
                "name": name_elsewhere(f"{os.environ['SHOAL_TMPDIR']}/xfer-{os.getpid()}-{digits}"),
                "digits": digits,
                "maker": digits[::-1],
                "maker_bytes": maker_bytes,
                "store_bytes": store_bytes,
                "token": token.decode(),
                "session_dir": session_dir,
                "config": {"spill": bool(session_dir), **config},
            }
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.place, directory, maker = self._answers[0].result(PATIENCE_S)
        self.directory = Path(directory)
        self.creator = make_address(self.place, maker)

    def _write(self, command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, result = json.loads(line)
            answer = self._answers.setdefault(number, Future())
            if isinstance(result, dict) and "error" in result:
                answer.set_exception(RuntimeError(result["error"]))
            else:
                answer.set_result(result)

    def begin(self, method: str, *args: Any) -> Future[Any]:
        """Send a command; its answer will come."""
        self._number += 1
        answer: Future[Any] = self._answers.setdefault(self._number, Future())
        self._write([self._number, method, *args])
        return answer

    def __call__(self, method: str, *args: Any) -> Any:
        return self.begin(method, *args).result(PATIENCE_S)

    def close(self) -> None:
        """End it in good order, unless it has been killed."""
        if self.process.poll() is None:
            self("stop")
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


if __name__ == "__main__":
    main()
