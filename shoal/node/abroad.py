"""What clients of this node have to do with processes of other nodes, and theirs with ours: ends, forced ends, and printed lines.

A client watches a process of another node as it does one of its own; this node watches for it there, once for all of its clients, and
answers for the whole node when that dies. The forwarded leases are in `node.leasing`.

Guarantees: whoever watches hears of the end exactly once, whether the process ended, ended long ago, or its node died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from shoal.messages.neighbours import EndProcess, Lines, ProcessEnded, WatchProcess
from shoal.messages.node import Log, PeerGone
from shoal.node.clients import Client, Clients
from shoal.node.neighbours import Neighbour, Neighbours
from shoal.wire.addresses import place_of

_log = logging.getLogger("shoal.node")

_MOST_LINES_WAITING: Final = 4096
"""Messages that wait for a neighbour; more, and lines for it are dropped and counted."""


class Abroad:
    """See the module's docstring. `is_alive` tells whether a process of this node lives."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        neighbours: Neighbours,
        clients: Clients,
        is_alive: Callable[[str], bool],
        patience_s: float,
    ) -> None:
        self._loop = loop
        self._neighbours = neighbours
        self._clients = clients
        self._is_alive = is_alive
        self._patience_s = patience_s
        # What clients of ours watch, by place; and who watches processes of ours.
        self._watched: dict[str, set[str]] = {}
        self._watchers: dict[str, dict[bytes, None]] = {}
        # Places of which the control store has not told us yet, and when they are given up.
        self._unknown: dict[str, asyncio.TimerHandle] = {}
        self._dropped: dict[bytes, int] = {}

    # --- what our clients want -----------------------------------------------------------------------------------

    def watch(self, client: Client, address: str) -> None:
        """Tell `client` when a process of another node ends."""
        self._clients.watch(client, address, alive=True)
        if self._clients.end_of(address) is not None:
            return
        place = place_of(address)
        watched = self._watched.setdefault(place, set())
        if address in watched:
            return
        watched.add(address)
        node = self._neighbours.at(place)
        if node is not None:
            self._neighbours.send(node, WatchProcess(address))
        elif place not in self._unknown:
            # A node that is new, or one that is dead already.
            self._unknown[place] = self._loop.call_later(self._patience_s, self._give_up, place)

    def _give_up(self, place: str) -> None:
        del self._unknown[place]
        self._bury(place, "its node is not known to the cluster: it died long ago, or never was")

    def kill(self, address: str, reason: str) -> None:
        """End a process of another node."""
        node = self._neighbours.at(place_of(address))
        if node is not None:
            self._neighbours.send(node, EndProcess(address, reason))

    def forward_lines(self, place: str, job_id: bytes, log: Log) -> None:
        """Lines for a driver of another node."""
        node = self._neighbours.at(place)
        if node is None:
            return
        key = node.node_id
        if self._neighbours.backlog(node) > _MOST_LINES_WAITING:
            self._dropped[key] = self._dropped.get(key, 0) + len(log.lines)
            return
        dropped = self._dropped.pop(key, 0)
        if dropped:
            text = (
                f"{dropped:,} lines of workers on node {self._neighbours.me} are not shown here, because they came faster than they "
                "could be sent; the workers' log files have them all"
            )
            self._neighbours.send(node, Lines(job_id, Log(0, "shoal", 2, [text])))
        log.place = self._neighbours.me.place
        self._neighbours.send(node, Lines(job_id, log))

    # --- what neighbours say -------------------------------------------------------------------------------------

    def on_watch(self, node: Neighbour, message: WatchProcess) -> None:
        """Clients of another node want to hear of the end of a process of ours."""
        address = message.address
        self._clients.watch_from_elsewhere(address)
        gone = self._clients.end_of(address)
        if gone is not None:
            self._neighbours.send(
                node, ProcessEnded(address, gone.cause, gone.expected, gone.memory)
            )
        elif self._is_alive(address):
            self._watchers.setdefault(address, {})[node.node_id] = None
        else:
            cause = "is not known to its node: it ended long ago, or never was"
            self._neighbours.send(node, ProcessEnded(address, cause, expected=False))

    def on_ended(self, node: Neighbour, message: ProcessEnded) -> None:
        """A process of another node has ended."""
        address = message.address
        if place_of(address) != node.place:
            _log.warning("%s speaks for %s, which is not its own", node, address)
            return
        self._watched.get(node.place, set()).discard(address)
        self._clients.gone(PeerGone(address, message.cause, message.expected, message.memory))

    # --- ends ----------------------------------------------------------------------------------------------------

    def on_process_gone(self, end: PeerGone) -> None:
        """A process of ours has ended."""
        for node_id in self._watchers.pop(end.address, ()):
            node = self._neighbours.get(node_id)
            if node is not None:
                self._neighbours.send(
                    node, ProcessEnded(end.address, end.cause, end.expected, end.memory)
                )

    def on_node_joined(self, place: str) -> None:
        """A node is known now; what clients watch there can be asked for."""
        timer = self._unknown.pop(place, None)
        node = self._neighbours.at(place)
        if timer is None or node is None:
            return
        timer.cancel()
        for address in self._watched.get(place, ()):
            self._neighbours.send(node, WatchProcess(address))

    def on_node_died(self, node: Neighbour, cause: str) -> None:
        """All processes of a node have ended."""
        for address in [a for a, watchers in self._watchers.items() if node.node_id in watchers]:
            del self._watchers[address][node.node_id]
            if not self._watchers[address]:
                del self._watchers[address]
        self._dropped.pop(node.node_id, None)
        self._bury(node.place, f"was lost with its {node}, which {cause}")

    def _bury(self, place: str, cause: str) -> None:
        for address in self._watched.pop(place, ()):
            self._clients.gone(PeerGone(address, cause))

    def close(self) -> None:
        """Stop the timers."""
        for timer in self._unknown.values():
            timer.cancel()
