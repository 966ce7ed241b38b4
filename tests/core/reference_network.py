"""Connections between simulated processes (see `reference_cluster`), and what tasks say on them.

The network keeps what sockets keep, and nothing else. One direction of one connection is in order; two processes may have two
connections, if both have opened one at a time. Nothing is lost but with a process: of what one that was killed has sent, any last part.
Nothing is sent twice on a connection, and a broken one is never made again (who breaks it is dead for the other side), so
messages between processes have no duplicates. What does come twice is what is *done* twice: items of a stream that is
retried, and the replies of two incarnations of an actor to the same call.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.messages.values import Failed, Inline, Refs, Stored

if TYPE_CHECKING:
    from tests.core.reference_process import Process

Value = Inline | Stored | Failed


class Run(NamedTuple):
    """Run a task, or call an actor. `deps` are values in the place of references that were arguments themselves."""

    task_id: bytes
    attempt: int
    refs: list[Refs]
    deps: list[Value]
    streams: bool


class Reply(NamedTuple):
    """A task has finished, with so many items if it streamed."""

    task_id: bytes
    value: Value
    length: int = -1


class Item(NamedTuple):
    """An item of a stream."""

    task_id: bytes
    index: int
    value: Value


class End:
    """One end of a connection, as the process there sees it."""

    def __init__(self, process: Process, peer_address: str) -> None:
        self.process = process
        self.peer_address = peer_address
        self.other: End | None = None
        self.inbox: deque[Any] = deque()
        self.closed = False
        # The other side will send nothing more.
        self.ended = False
        # What comes here takes its time: so whole chains of messages overtake it.
        self.slow = process.cluster.rng.random() < 0.25

    @property
    def peer(self) -> Process:
        return self.process.cluster.processes[self.peer_address]

    def send(self, message: Any) -> None:
        other = self.other
        if self.closed or other is None or other.closed:
            return
        other.inbox.append(message)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.inbox.clear()
        if self.other is not None:
            self.other.ended = True


class Peers:
    """The connections of a process: see `runtime.peers`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._by_address: dict[str, End] = {}
        self.ends: list[End] = []
        self.gone: dict[str, str] = {}
        self.ended: dict[str, None] = {}
        self.watched: set[str] = set()

    def connect(self, address: str) -> End:
        end = self._by_address.get(address)
        if end is not None and not end.closed:
            return end
        if address in self.gone:
            raise ConnectionError(address)
        cluster = self._process.cluster
        target = cluster.processes[address]
        if target.dead and cluster.rng.random() < 0.5:
            # On the same node that is seen at once.
            raise ConnectionError(address)
        end = End(self._process, address)
        if target.dead:
            end.ended = True
        else:
            end.other = End(target, self._process.address)
            end.other.other = end
            target.peers.ends.append(end.other)
        self.ends.append(end)
        self.adopt(end)
        return end

    def adopt(self, end: End) -> None:
        known = self._by_address.get(end.peer_address)
        if known is None or known.closed:
            self._by_address[end.peer_address] = end
        self.watch(end.peer_address)

    def watch(self, address: str) -> None:
        if address not in self.watched:
            self.watched.add(address)
            self._process.cluster.watch(self._process, address)

    def is_connected(self, address: str) -> bool:
        return any(end.peer_address == address for end in self.ends)

    def forget(self, address: str) -> None:
        self.ended.pop(address, None)
        self.gone[address] = "was killed"
        self.watched.discard(address)
        for end in [end for end in self.ends if end.peer_address == address]:
            end.close()
            self.forget_end(end)

    def forget_end(self, end: End) -> None:
        end.close()
        self.ends.remove(end)
        if self._by_address.get(end.peer_address) is end:
            del self._by_address[end.peer_address]
