"""What a node asks about the dead: again, if a user went or let go while the others had not answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

import pytest

from shoal.messages.node import Job
from shoal.messages.stores import InUse, WhoUses
from shoal.messages.values import Location
from shoal.node.clients import Client, Clients
from shoal.node.inquiries import Ended, Inquiries, Used
from shoal.wire.aio import PeerConnection

DEAD = "10.0.0.1:1/w-0000000d"
NODE = b"n" * 16
BLOCK = Location("0000000d-0", 0, 5_000, 1)
PATIENCE_S = 30.0


class Connection:
    """What the node sends to a client."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class OtherNodes:
    """The daemons of the other nodes: those that are `alive` can be asked, and one asks."""

    def __init__(self) -> None:
        self.told: list[tuple[int, list[Location]]] = []
        self.again: list[str] = []
        self.asked: list[Ended] = []
        self.nothing_left: list[tuple[bytes, str]] = []
        self.alive: list[bytes] = []

    def nodes(self) -> Iterable[bytes]:
        return self.alive

    def ask(self, node_id: bytes, ended: list[Ended]) -> None:
        assert node_id in self.alive
        self.asked += ended

    def tell(self, node_id: bytes, number: int, locations: list[Location]) -> None:
        self.told.append((number, locations))

    def ask_again(self, node_id: bytes, address: str) -> None:
        self.again.append(address)

    def tell_nothing_left(self, node_id: bytes, address: str) -> None:
        self.nothing_left.append((node_id, address))


class Here:
    """A node with two clients."""

    def __init__(self) -> None:
        self.clients = Clients()
        self.outcomes: list[Used] = []
        self.others = OtherNodes()
        self.inquiries = Inquiries(
            asyncio.get_running_loop(),
            self.clients,
            lambda _address, used: self.outcomes.append(used),
            lambda _address: b"",
            PATIENCE_S,
        )
        self.inquiries.others = self.others
        self.first, self.second = self._client(1), self._client(2)

    def _client(self, number: int) -> Client:
        connection = cast("PeerConnection", Connection())
        job = Job(b"j" * 16, "", [], "")
        return self.clients.add(connection, f"10.0.0.1:1/w-0000000{number}", number, job)

    def asked(self, client: Client) -> list[WhoUses]:
        return [one for one in cast("Connection", client.connection).sent if type(one) is WhoUses]

    def answer(self, client: Client, locations: list[Location]) -> None:
        (number, _, _) = self.asked(client)[-1].ended[0]
        self.inquiries.on_in_use(client, InUse(number, locations))

    def go(self, client: Client) -> None:
        self.clients.remove(client)
        self.inquiries.on_client_gone(client)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)


def run(scenario: Callable[[Here], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        here = Here()
        try:
            await scenario(here)
        finally:
            here.inquiries.close()

    asyncio.run(whole())


def test_a_user_that_ends_before_the_others_have_answered_is_a_reason_to_ask_again() -> None:
    async def scenario(here: Here) -> None:
        here.inquiries.ask([DEAD])
        here.answer(here.first, [BLOCK])
        here.go(here.first)
        here.answer(here.second, [])
        assert here.outcomes == [{BLOCK.segment: {(BLOCK.offset, BLOCK.size)}}]
        await here.until(lambda: len(here.asked(here.second)) == 2)
        here.answer(here.second, [])
        assert here.outcomes[1:] == [{}]

    run(scenario)


def test_a_user_that_ends_afterwards_is_one_too_and_one_that_named_nothing_is_none() -> None:
    async def scenario(here: Here) -> None:
        here.inquiries.ask([DEAD])
        here.answer(here.first, [BLOCK])
        here.answer(here.second, [])
        here.go(here.second)
        here.go(here.first)
        # Nobody is left to be asked.
        await here.until(lambda: len(here.outcomes) == 2)
        assert here.outcomes[1] == {}

    run(scenario)


@pytest.mark.parametrize("how", ["ends", "lets go"])
def test_the_node_that_asks_hears_of_it_after_the_answer(how: str) -> None:
    async def scenario(here: Here) -> None:
        here.inquiries.on_node_asks(NODE, [(7, DEAD, "was killed", b"")])
        here.answer(here.first, [BLOCK])
        if how == "ends":
            here.go(here.first)
        else:
            here.inquiries.on_let_go(DEAD)
        assert here.others.told == []
        here.answer(here.second, [])
        assert here.others.told == [(7, [BLOCK])]
        assert here.others.again == [DEAD]

    run(scenario)


def test_the_node_that_asks_hears_nothing_more_if_all_is_as_it_was_told() -> None:
    async def scenario(here: Here) -> None:
        here.inquiries.on_node_asks(NODE, [(7, DEAD, "was killed", b"")])
        here.answer(here.first, [BLOCK])
        here.inquiries.on_let_go("10.0.0.1:1/w-000000ff")
        here.answer(here.second, [])
        assert here.others.told == [(7, [BLOCK])]
        assert here.others.again == []
        here.go(here.first)
        assert here.others.again == [DEAD]

    run(scenario)


def test_nothing_is_remembered_of_what_is_gone() -> None:
    """Neither by the node that has asked, nor by the one whose clients named anything."""

    async def scenario(here: Here) -> None:
        here.others.alive = [NODE]
        here.inquiries.ask([DEAD])
        for client in (here.first, here.second):
            here.answer(client, [])
        here.inquiries.on_node_in_use(NODE, here.others.asked[0][0], [BLOCK])
        assert here.outcomes == [{BLOCK.segment: {(BLOCK.offset, BLOCK.size)}}]
        here.inquiries.forget(DEAD)
        assert here.others.nothing_left == [(NODE, DEAD)]
        here.inquiries.forget(DEAD)
        assert len(here.others.nothing_left) == 1

        here.inquiries.on_node_asks(NODE, [(7, DEAD, "was killed", b"")])
        here.answer(here.first, [BLOCK])
        here.answer(here.second, [])
        assert here.others.told == [(7, [BLOCK])]
        here.inquiries.on_nothing_left(NODE, DEAD)
        here.go(here.first)
        here.inquiries.on_let_go(DEAD)
        assert here.others.again == []

    run(scenario)
