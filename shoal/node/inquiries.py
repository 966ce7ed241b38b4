"""Asks every client of the cluster which objects of a process that has ended it still uses.

Each inquiry is about one process and has a number: who is asked, and what the answers name. When all have answered (or ended), the keeper
of the store hears what is in use; all else that the process left may go. Objects that are in use at that moment and whose owner has ended
have nobody who will say when they are not: so the question is asked again when a user says that it has let go of something, or has ended,
also if that is while others have not answered yet. A little later, once for many such words, and about several processes at once: each
client looks through all its objects for an answer.

A client that does not answer within `inquiry_patience_s` (it was stopped, or is inside a call that does not let go of the interpreter) may
still use what it was told of, so nothing is freed that it may know. But it does not hold up what it cannot know: `core.circles` says so
of the jobs on this node, by who has met whom.

Of other nodes, the daemons are asked, each of which asks its own clients *on behalf* of this node, remembers which of them named anything,
and says when it is time to ask again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from shoal.messages.stores import InUse, WhoUses
from shoal.messages.values import Location
from shoal.node.clients import Client, Clients

_AGAIN_S: Final = 0.2

Used = dict[str, set[tuple[int, int]]]
"""Blocks, by segment, as offsets and sizes."""

Participant = int | bytes
"""A client by its number, or a node by its id."""

Ended = tuple[int, str, str, bytes]
"""Number of the inquiry, address of the process that has ended, how, and its job (empty if not known)."""


class Others(Protocol):
    """The daemons of the other nodes, by the ids of these."""

    def nodes(self) -> Iterable[bytes]:
        """Those that live."""

    def ask(self, node_id: bytes, ended: list[Ended]) -> None:
        """Ask on our behalf; answered by `on_node_in_use`."""

    def tell(self, node_id: bytes, number: int, locations: list[Location]) -> None:
        """The answer to what a node has asked."""

    def ask_again(self, node_id: bytes, address: str) -> None:
        """Somebody here has let go of something that we had named to a node."""

    def tell_nothing_left(self, node_id: bytes, address: str) -> None:
        """What a node has named is all gone."""


class _Inquiry:
    """`asked` are those that have not answered, `users` those that named anything; `judging` drops some of the former."""

    __slots__ = ("address", "asked", "conclude", "job_id", "judging", "locations", "stale", "users")

    def __init__(
        self,
        address: str,
        job_id: bytes,
        conclude: Callable[[_Inquiry], None],
        judging: asyncio.TimerHandle,
    ) -> None:
        self.address = address
        self.job_id = job_id
        self.conclude = conclude
        self.judging = judging
        self.asked: dict[Participant, None] = {}
        self.users: set[Participant] = set()
        self.locations: dict[Location, None] = {}
        # Somebody uses less by now than it has named.
        self.stale = False


class Inquiries:
    """See the module's docstring. `conclude(address, used)` hears the outcome of each of this node's own; `job_of(address)` is the job of a
    process that has ended, empty if that is not known.

    Attributes:
        others: The other nodes, if this one is in a cluster.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        conclude: Callable[[str, Used], None],
        job_of: Callable[[str], bytes],
        patience_s: float,
    ) -> None:
        self.others: Others | None = None
        self._loop = loop
        self._clients = clients
        self._conclude = conclude
        self._job_of = job_of
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._running: dict[int, _Inquiry] = {}
        # Our own, by process.
        self._own: dict[str, int] = {}
        # Who named anything, by process: whose end is a reason to ask again.
        self._users: dict[str, set[Participant]] = {}
        # The same for what other nodes have asked, by node and process.
        self._named: dict[tuple[bytes, str], set[Participant]] = {}
        # Processes to ask about again.
        self._due: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    # --- our own -------------------------------------------------------------------------------------------------

    def ask(self, addresses: list[str]) -> None:
        """Ask now; again, if an inquiry runs already."""
        ended: list[Ended] = []
        for address in addresses:
            if address in self._own:
                self.ask_later(address)
                continue
            job_id = self._job_of(address)
            number = self._begin(address, job_id, self._end_own)
            self._own[address] = number
            self._users.pop(address, None)
            ended.append((number, address, self._clients.cause_of(address), job_id))
        if not ended:
            return
        self._ask_clients(ended)
        if self.others is not None:
            for node_id in self.others.nodes():
                self._expect(ended, node_id)
                self.others.ask(node_id, ended)
        self._look([number for number, *_ in ended])

    def ask_later(self, address: str) -> None:
        """Ask in a while, once however often this is said meanwhile."""
        self._due[address] = None
        if self._timer is None:
            self._timer = self._loop.call_later(_AGAIN_S, self._ask_due)

    def _ask_due(self) -> None:
        self._timer = None
        due, self._due = self._due, {}
        self.ask(list(due))

    def _end_own(self, inquiry: _Inquiry) -> None:
        address = inquiry.address
        del self._own[address]
        if inquiry.users:
            self._users[address] = inquiry.users
        if inquiry.stale:
            self.ask_later(address)
        used: Used = {}
        for location in inquiry.locations:
            used.setdefault(location.segment, set()).add((location.offset, location.size))
        self._conclude(address, used)

    def forget(self, address: str) -> None:
        """Nothing is left of what a process made or owned."""
        users = self._users.pop(address, ())
        if self.others is not None:
            for who in users:
                if isinstance(who, bytes):
                    self.others.tell_nothing_left(who, address)

    # --- on behalf of other nodes ----------------------------------------------------------------------------------

    def on_node_asks(self, node_id: bytes, asked: list[Ended]) -> None:
        """A node wants to know what our clients use."""
        ended: list[Ended] = []
        for theirs, address, cause, job_id in asked:
            self._named.pop((node_id, address), None)
            number = self._begin(address, job_id, partial(self._end_for, node_id, theirs))
            ended.append((number, address, cause, job_id))
        self._ask_clients(ended)
        self._look([number for number, *_ in ended])

    def _end_for(self, node_id: bytes, theirs: int, inquiry: _Inquiry) -> None:
        if inquiry.users:
            self._named[node_id, inquiry.address] = inquiry.users
        if self.others is not None:
            self.others.tell(node_id, theirs, list(inquiry.locations))
            if inquiry.stale:
                self.others.ask_again(node_id, inquiry.address)

    def on_nothing_left(self, node_id: bytes, address: str) -> None:
        """What our clients have named to a node is all gone."""
        self._named.pop((node_id, address), None)

    def on_let_go(self, address: str) -> None:
        """A client of ours uses less of what a process has left; nodes to which we named that should ask again."""
        for node_id, named in list(self._named):
            if named == address and self.others is not None:
                self.others.ask_again(node_id, address)
        for inquiry in self._running.values():
            # Whoever lets go may have named it before.
            inquiry.stale |= inquiry.address == address

    # --- answers -------------------------------------------------------------------------------------------------

    def on_in_use(self, client: Client, message: InUse) -> None:
        """A client says what it uses."""
        self._on_answer(client.number, message.number, message.locations)

    def on_node_in_use(self, node_id: bytes, number: int, locations: list[Location]) -> None:
        """A node says what its clients use."""
        self._on_answer(node_id, number, locations)

    def _on_answer(self, who: Participant, number: int, locations: list[Location]) -> None:
        inquiry = self._running.get(number)
        if inquiry is None or who not in inquiry.asked:
            return
        if locations:
            inquiry.users.add(who)
            inquiry.locations.update(dict.fromkeys(locations))
        del inquiry.asked[who]
        self._look([number])

    def _judge(self, number: int) -> None:
        """Some have taken long: wait no more for those that cannot know anything of the process."""
        inquiry = self._running[number]
        for who in list(inquiry.asked):
            # Another daemon judges for itself, and of one that is silent the control store says whether it is dead.
            client = self._clients.get(who) if isinstance(who, int) else None
            if client is not None and not self._clients.circles.may_know(
                client.job.job_id, inquiry.job_id
            ):
                del inquiry.asked[who]
        self._look([number])

    # --- ends ----------------------------------------------------------------------------------------------------

    def on_client_gone(self, client: Client) -> None:
        """A client has ended: it uses nothing. What it used when it was last asked, perhaps nobody does now."""
        for (node_id, address), users in self._named.items():
            if client.number in users and self.others is not None:
                self.others.ask_again(node_id, address)
        self._forget(client.number)

    def on_node_gone(self, node_id: bytes) -> None:
        """A node has ended, with all its clients."""
        for key in [key for key in self._named if key[0] == node_id]:
            del self._named[key]
        self._forget(node_id)

    def _forget(self, who: Participant) -> None:
        for address, users in self._users.items():
            if who in users:
                self.ask_later(address)
        for number, inquiry in list(self._running.items()):
            inquiry.stale |= who in inquiry.users
            if inquiry.asked.pop(who, False) is None:
                self._look([number])

    def close(self) -> None:
        """Stop the timers."""
        if self._timer is not None:
            self._timer.cancel()
        for inquiry in self._running.values():
            inquiry.judging.cancel()

    # --- inner workings ------------------------------------------------------------------------------------------

    def _begin(self, address: str, job_id: bytes, conclude: Callable[[_Inquiry], None]) -> int:
        number = next(self._numbers)
        judging = self._loop.call_later(self._patience_s, self._judge, number)
        self._running[number] = _Inquiry(address, job_id, conclude, judging)
        return number

    def _ask_clients(self, ended: list[Ended]) -> None:
        question = WhoUses([(number, address, cause) for number, address, cause, _ in ended])
        for client in self._clients:
            self._expect(ended, client.number)
            client.send(question)

    def _expect(self, ended: list[Ended], who: Participant) -> None:
        for number, *_ in ended:
            self._running[number].asked[who] = None

    def _look(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            inquiry = self._running.get(number)
            if inquiry is not None and not inquiry.asked:
                del self._running[number]
                inquiry.judging.cancel()
                inquiry.conclude(inquiry)
