"""A node's side towards the others of its cluster, put together: its door, its neighbours, and what goes over them.

::

    door ─► Doorkeeper ─► Neighbours ─► Outside ─► Hosting    leases for processes of other nodes
                                                ─► Lending    leases from other nodes for ours
                                                ─► Abroad     ends of processes, printed lines
                    └──────► Transfers                        objects

A session without a door has none of this. Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shoal.messages.boot import Boot
from shoal.messages.control import NodeDied, NodeJoined, Order, Post, ViewChanged
from shoal.messages.neighbours import (
    Ask,
    AskAgain,
    Busy,
    EndProcess,
    Gave,
    GiveBack,
    Introduce,
    Lines,
    Neighbourly,
    NothingLeft,
    OwnerEnded,
    ProcessEnded,
    Refused,
    Revoked,
    UsesAsked,
    UsesTold,
    Waits,
    WantBack,
    WatchProcess,
    Withdraw,
)
from shoal.messages.node import Log
from shoal.messages.stores import FreeOrphans
from shoal.messages.transfer import Freed, Pull, PullDone
from shoal.node.abroad import Abroad
from shoal.node.clients import Client, Clients
from shoal.node.doorkeeper import Doorkeeper
from shoal.node.hosting import Hosting
from shoal.node.jobs import Jobs
from shoal.node.leasing import Lending
from shoal.node.neighbours import Neighbour, Neighbours, daemon_name
from shoal.node.showing import Showing
from shoal.node.store import StoreKeeper
from shoal.node.transfer.links import open_bulk
from shoal.node.transfer.service import Transfers
from shoal.node.uses import UsesElsewhere
from shoal.node.workers import Workers
from shoal.wire.addresses import make_address
from shoal.wire.session import spill_path
from shoal.wire.tls import Tls


class Outside:
    """See the module's docstring.

    Args:
        is_alive: Whether a process of this node lives.
        keeper: The store of this node.
        end_process: Ends a worker of this node, for a reason.
        show: Passes lines on to a driver of this node.
        post: Tells the control store.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        node_id: bytes,
        clients: Clients,
        workers: Workers,
        jobs: Jobs,
        keeper: StoreKeeper,
        *,
        is_alive: Callable[[str], bool],
        end_process: Callable[[str, str], None],
        show: Callable[[bytes, Log], None],
        post: Callable[[Post], None],
    ) -> None:
        config = boot.config
        self._loop = loop
        self._boot = boot
        self._node_id = node_id
        self._workers = workers
        self.showing = Showing(loop, boot, node_id, workers.queue, post, keeper.rows, self._on_room)
        self.showing.tell()
        self._store = keeper
        self._keeper: Doorkeeper | None = None
        tls = Tls.of(config)
        self.neighbours = Neighbours(
            loop,
            Neighbour(node_id, boot.place, boot.node_name),
            boot.token,
            config.max_frame_bytes,
            self._on_message,
            tls,
        )
        self.lending = Lending(
            node_id,
            workers,
            clients,
            self.neighbours,
            self.showing.row,
            partial(loop.call_later, config.explain_ms / 1_000),
            jobs.is_over,
        )
        self.abroad = Abroad(loop, self.neighbours, clients, is_alive, config.node_timeout_s)
        self.hosting = Hosting(workers, jobs, self.neighbours, self.showing.promised_row)
        self.transfers = Transfers(
            loop,
            clients,
            keeper,
            boot.token,
            make_address(boot.place, daemon_name(node_id)),
            Path(boot.shm_dir),
            Path(spill_path(boot.session_dir)) if config.spill else None,
            config,
            lambda place: open_bulk(
                place, config.pull_stall_s, None if tls is None else tls.client
            ),
            None if tls is None else tls.server,
        )
        self._uses = UsesElsewhere(self.neighbours, keeper.inquiries)
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            Pull: self.transfers.on_pull,
            PullDone: self.transfers.on_done,
            Freed: lambda _, m: self.transfers.on_freed(m.locations),
            FreeOrphans: lambda _, m: self.transfers.free_orphans(m),
        }
        self._handlers: dict[type, Callable[[Neighbour, Any], None]] = {
            Introduce: self.hosting.on_introduce,
            Ask: self.hosting.on_ask,
            Withdraw: self.hosting.on_withdraw,
            GiveBack: self.hosting.on_give_back,
            OwnerEnded: self.hosting.on_owner_ended,
            Gave: self.lending.on_gave,
            Busy: self.lending.on_busy,
            Refused: self.lending.on_node_refused,
            WantBack: self.lending.on_want_back,
            Waits: self.lending.on_waits,
            Revoked: self.lending.on_node_revoked,
            WatchProcess: self.abroad.on_watch,
            ProcessEnded: self.abroad.on_ended,
            EndProcess: lambda _, m: end_process(m.address, m.reason),
            Lines: lambda _, m: show(m.job_id, m.log),
            UsesAsked: self._uses.on_asked,
            UsesTold: self._uses.on_told,
            AskAgain: self._uses.on_ask_again,
            NothingLeft: self._uses.on_nothing_left,
        }

    def open(self, door: socket.socket) -> None:
        """Let others in."""
        self._keeper = Doorkeeper(
            self._loop,
            door,
            self._boot.session_dir,
            daemon_name(self._node_id),
            self.neighbours.accept,
            self.transfers.accept_bulk,
            self._boot.config.door_strangers,
        )

    def _on_message(self, node: Neighbour, message: Neighbourly) -> None:
        self._handlers[type(message)](node, message)
        self._workers.advance()

    # --- the cluster ---------------------------------------------------------------------------------------------

    def on_order(self, order: Order) -> None:
        """The control store tells of other nodes."""
        match order:
            case NodeJoined(row):
                self.neighbours.on_node_joined(row.node_id, row.place, row.name)
                self.abroad.on_node_joined(row.place)
                self.transfers.on_neighbour_here(row.place)
                self.lending.on_node_joined(row.node_id)
            case NodeDied(row, cause):
                self._on_node_died(row.node_id, cause)
                self.transfers.on_neighbour_gone(row.place, cause)
            case ViewChanged(rows):
                self.lending.on_rows(rows)
        self._workers.advance()

    def _on_node_died(self, node_id: bytes, cause: str) -> None:
        node = self.neighbours.on_node_died(node_id, cause)
        if node is not None:
            self.hosting.on_node_died(node, cause)
            self.abroad.on_node_died(node, cause)
        self._store.inquiries.on_node_gone(node_id)
        self.lending.on_node_died(node_id)

    def _on_room(self) -> None:
        """This node may have room for what waits elsewhere."""
        self.lending.on_room()
        self._workers.advance()

    def close(self) -> None:
        """Leave, without a word: the control store tells the others."""
        self.showing.close()
        if self._keeper is not None:
            self._keeper.close()
        self.neighbours.close()
        self.abroad.close()
        self.transfers.close()
