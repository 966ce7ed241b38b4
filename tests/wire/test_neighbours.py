"""Daemons that speak with each other: everything arrives once and in order, whatever becomes of the connections."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.messages.neighbours import EndProcess, Neighbourly
from shoal.node.doorkeeper import Doorkeeper
from shoal.node.neighbours import Neighbour, Neighbours, daemon_name
from shoal.wire.addresses import make_place
from shoal.wire.handshake import new_token
from tests.wire.doors import turn_away
from tests.wire.reactors import PATIENCE_S

if TYPE_CHECKING:
    import pytest

TOKEN = new_token()


class Town:
    """Daemons with doors, in this process's loop."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.folder = folder
        self.houses: list[House] = []

    def build(self, token: bytes = TOKEN) -> House:
        house = House(self, token)
        for other in self.houses:
            other.meet(house)
            house.meet(other)
        self.houses.append(house)
        return house


class House:
    """One of them, and what it has heard."""

    def __init__(self, town: Town, token: bytes) -> None:
        self.heard: list[tuple[Neighbour, Any]] = []
        door = socket.create_server(("127.0.0.1", 0))
        node_id = random.randbytes(16)
        self.me = Neighbour(node_id, make_place("127.0.0.1", door.getsockname()[1]), "")
        self.neighbours = Neighbours(town.loop, self.me, token, 1 << 20, self.on_message)
        self.keeper = Doorkeeper(
            town.loop,
            door,
            str(town.folder),
            daemon_name(node_id),
            self.neighbours.accept,
            turn_away,
            100,
        )

    def on_message(self, node: Neighbour, message: Neighbourly) -> None:
        self.heard.append((node, message))

    def meet(self, other: House) -> None:
        self.neighbours.on_node_joined(other.me.node_id, other.me.place, "")

    def tell(self, other: House, number: int) -> None:
        node = self.neighbours.at(other.me.place)
        if node is not None:
            self.neighbours.send(node, EndProcess(f"p{number}", ""))

    def numbers(self) -> list[str]:
        return [message.address for _, message in self.heard]

    def close(self) -> None:
        self.neighbours.close()
        self.keeper.close()


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    it = Town(folder)
    try:
        yield it
    finally:
        for house in it.houses:
            house.close()
        await asyncio.sleep(0.01)


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.001)


def expected(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def test_everything_arrives_once_and_in_order_over_connections_that_break(tmp_path: Path) -> None:
    async def scenario() -> None:
        rng = random.Random(7)
        async with town(tmp_path) as it:
            here, there = it.build(), it.build()
            for number in range(2000):
                here.tell(there, number)
                there.tell(here, number)
                if rng.random() < 0.02:
                    side = rng.choice([here, there])
                    for connection in list(side.neighbours._listening):
                        connection.fail(ConnectionResetError("a test broke it"))
                if rng.random() < 0.2:
                    await asyncio.sleep(0.001)
            await until(lambda: len(here.heard) >= 2000 and len(there.heard) >= 2000)
            assert here.numbers() == there.numbers() == expected(2000)
            assert {node.node_id for node, _ in there.heard} == {here.me.node_id}
            node = here.neighbours.at(there.me.place)
            assert node is not None
            await until(lambda: here.neighbours.backlog(node) == 0)

    asyncio.run(scenario())


def test_a_node_that_is_not_there_yet_is_tried_until_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as it:
            here = it.build()
            there = it.build()
            there.keeper.close()
            host, _, port = there.me.place.rpartition(":")
            here.tell(there, 0)
            await until(lambda: "cannot be reached" in caplog.text)
            door = socket.create_server((host, int(port)))
            there.keeper = Doorkeeper(
                it.loop,
                door,
                str(tmp_path),
                daemon_name(there.me.node_id),
                there.neighbours.accept,
                turn_away,
                100,
            )
            await until(lambda: there.numbers() == expected(1))

    asyncio.run(scenario())


def test_to_the_dead_nothing_is_said_and_from_them_nothing_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as it:
            here, there = it.build(), it.build()
            here.tell(there, 0)
            there.tell(here, 0)
            await until(lambda: here.heard and there.heard)
            there.neighbours.on_node_died(here.me.node_id, "sent no heartbeat for 10 s")
            assert there.neighbours.at(here.me.place) is None
            # It does not know that it is dead.
            here.tell(there, 1)
            await until(lambda: "declared dead" in caplog.text)
            assert there.numbers() == expected(1)

    asyncio.run(scenario())


def test_another_node_at_the_same_place_is_not_taken_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as it:
            here, there = it.build(), it.build()
            here.neighbours._nodes.clear()
            # The door keeps daemons apart by the beginning of the id.
            before = there.me.node_id[:4] + random.randbytes(12)
            here.neighbours.on_node_joined(before, there.me.place, "old")
            here.tell(there, 0)
            await until(lambda: "the node here is" in caplog.text)
            assert there.heard == []

    asyncio.run(scenario())


def test_a_daemon_without_the_token_is_not_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as it:
            here, there = it.build(), it.build(new_token())
            here.tell(there, 0)
            await until(lambda: "token" in caplog.text)
            assert there.heard == []

    asyncio.run(scenario())
