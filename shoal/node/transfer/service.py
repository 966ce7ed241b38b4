"""The part of the transfers that lives in the daemon's event loop: it owns the two cores, and has threads do what blocks.

Guarantees
- No byte of an object passes through the loop, and nothing here blocks it.
- Threads begin with the first transfer, so after the zygote was forked; `close` has them all end.
- Copies are blocks of the daemon's own arena, which draws quota from the node's store as every process does. They are secondary: when
  room is wanted, in memory or on the disk, those that nobody has pinned are dropped. Files on disk are removed by a thread.

Every `Fetch` of the core becomes an `Attempt` in a thread and ends as one event of the core, also when the arena needs quota first: then
the attempt is begun anew once there is some.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from shoal.clock import monotonic_ns
from shoal.config import Config
from shoal.core.pull_records import Answer, Copy, Discard, Fetch, Key, Stage, Stop
from shoal.core.pulls import Pulls
from shoal.core.uploads import Serve, Uploads
from shoal.errors import ProtocolError
from shoal.messages.stores import (
    FreeOrphans,
    QuotaGranted,
    QuotaRequest,
    QuotaWanted,
    Spilled,
    SpillWanted,
)
from shoal.messages.transfer import (
    Ask,
    CopiesDead,
    Elsewhere,
    Missing,
    OrphansDead,
    Pull,
    PullDone,
    Pulled,
)
from shoal.messages.values import Location
from shoal.node.chores import Chores
from shoal.node.clients import Client, Clients
from shoal.node.store import StoreKeeper
from shoal.node.transfer.admission import admit
from shoal.node.transfer.blocks import CopySource, Incoming, LockedSource, Source, bring_soon
from shoal.node.transfer.links import Link, LinkBrokenError, LinkPool
from shoal.node.transfer.pulling import Arrived, Attempt, Broken, Full, Outcome, Short
from shoal.node.transfer.room import DaemonQuota
from shoal.node.transfer.serving import Serving, Terms, Upload
from shoal.node.transfer.survivors import Survivors
from shoal.node.transfer.telling import Telling
from shoal.store import Arena, ArenaStats
from shoal.wire.addresses import creator_at, place_of
from shoal.wire.doorway import Settled

_log = logging.getLogger("shoal.node")

_JOIN_S: Final = 2.0
_LATE_S: Final = 10.0


class Transfers:
    """See the module's docstring. All methods are called in the loop.

    Args:
        keeper: Where quota comes from.
        address: The daemon's own; its place is where other nodes find this one.
        connect: Opens a socket to the door of a place, with the preface said (and TLS made); called in threads.
        context: For TLS on accepted connections, if the cluster has it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        keeper: StoreKeeper,
        token: bytes,
        address: str,
        directory: Path,
        spill_directory: Path | None,
        config: Config,
        connect: Callable[[str], socket.socket],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._keeper = keeper
        self._token = token
        self._address = address
        self._place = place_of(address)
        self._directory = directory
        self._spill_directory = spill_directory
        self._config = config
        self._open = connect
        self._context = context
        limit = min(config.pull_inflight_bytes, keeper.quotas.capacity // 2)
        self._pulls = Pulls(
            limit,
            config.pulls_at_once,
            config.pull_tries,
            self._feeds,
            self._is_on_disk,
            self._is_viewed,
            keeper.quotas.capacity,
            # As long as the control store may take to say that a node has died.
            int(config.node_timeout_s * 1e9),
        )
        self._uploads = Uploads(self._place, config.uploads_per_object, self._pulls.stage)
        self._terms = Terms(
            config.transfer_chunk_bytes,
            config.transfer_checksums,
            config.pull_stall_s,
            # The side that connects closes first.
            2 * config.bulk_idle_s + _LATE_S,
        )
        self._pool = LinkPool(config.bulk_idle_s)
        self._share = DaemonQuota(
            address, keeper, self._take_quota, self._tell_loop, config.store_idle_s
        )
        self._arena: Arena | None = None
        self._incoming: dict[Key, Incoming] = {}
        self._attempts: dict[int, Attempt] = {}
        # Attempts that wait for quota, by the number of the request.
        self._short: dict[int, Attempt] = {}
        self._numbers = itertools.count(1)
        self._admitting: set[asyncio.Task[None]] = set()
        self._servings: dict[Serving, threading.Thread] = {}
        self._pullers: ThreadPoolExecutor | None = None
        self._telling = Telling(self._pool, self._connect)
        self._survivors = Survivors(loop, self._place, self._telling.tell)
        self._removals = Chores("shoal-removing")
        self._timer: asyncio.TimerHandle | None = None
        self._trimmer: asyncio.TimerHandle | None = None
        self._closed = False
        keeper.when_swept.append(self._on_swept)
        keeper.room.copies = self
        if keeper.room.remote is not None:
            keeper.room.remote.spared = creator_at(address)

    # --- what clients say ----------------------------------------------------------------------------------------

    def on_pull(self, client: Client, message: Pull) -> None:
        """A client wants an object of another node."""
        place = place_of(message.creator)
        if place == self._place or not creator_at(message.creator):
            raise ProtocolError(
                f"an object of {message.creator!r} cannot be brought to {self._place}"
            )
        size, capacity = message.location.size, self._keeper.quotas.capacity
        if size > capacity and self._spill_directory is None:
            error = (
                f"ObjectStoreFullError: it has {size:,} bytes, but the whole object store of this node has {capacity:,}; "
                "start the node with a larger object_store_memory, or make smaller objects"
            )
            client.send(Pulled(message.req, None, error))
            return
        key = Key(place, message.location)
        self._pulls.on_wish(client.number, message.req, key, message.why, monotonic_ns())
        self._drain()

    def on_done(self, client: Client, message: PullDone) -> None:
        """A client has mapped what it wanted, or does not want it any more."""
        self._pulls.on_done_with(client.number, message.req, monotonic_ns())
        self._drain()

    def on_client_gone(self, client: Client) -> None:
        """A client has ended."""
        self._pulls.on_client_gone(client.number, monotonic_ns())
        self._drain()

    def on_freed(self, locations: Iterable[Location]) -> None:
        """Blocks of this node are dead."""
        self._uploads.on_freed(locations)
        self._drain()

    def free_orphans(self, message: FreeOrphans) -> None:
        """Blocks of a process that has ended, here or at another node, are dead."""
        place = place_of(message.creator)
        if place in {"", self._place}:
            self._free_here(message.locations)
        elif self._pulls.has_ended(place):
            self._pulls.on_dead(place, message.locations)
            self._survivors.on_dead(place, message.locations)
            self._drain()
        else:
            self._telling.tell(place, OrphansDead(message.locations))

    def _free_here(self, locations: list[Location]) -> None:
        self._keeper.free(locations)
        self.on_freed(locations)

    def _on_swept(self, creator: str) -> None:
        """A process of this node has ended, and nothing that it made is left."""
        self._uploads.on_creator_gone(creator)
        self._drain()

    # --- what other nodes do -------------------------------------------------------------------------------------

    def on_neighbour_gone(self, place: str, cause: str) -> None:
        """A node has ended."""
        self._pool.forget(place)
        self._survivors.on_place_gone(place)
        self._uploads.on_place_gone(place)
        self._pulls.on_place_gone(place, cause, monotonic_ns())
        self._drain()

    def on_neighbour_here(self, place: str) -> None:
        """A node has come."""
        self._pulls.on_place_here(place)
        self._survivors.on_place_here(place)

    def accept_bulk(self, sock: socket.socket) -> Settled:
        """Another daemon has connected, and has said the preface."""
        task = self._loop.create_task(self._admit(sock))
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)
        return task

    async def _admit(self, sock: socket.socket) -> None:
        admitted = await admit(self._loop, sock, self._token, self._context)
        if admitted is not None:
            self._serve(Link(admitted, self._terms.stall_s))

    def _serve(self, link: Link) -> None:
        if self._closed:
            link.close()
            return
        serving = Serving(link, self._terms, self._decide, self._on_dead)

        def serve() -> None:
            try:
                serving.run()
            finally:
                self._tell_loop(self._servings.pop, serving, None)

        thread = threading.Thread(target=serve, name="shoal-serving", daemon=True)
        self._servings[serving] = thread
        thread.start()

    # --- pulling -------------------------------------------------------------------------------------------------

    def _feeds(self, key: Key) -> bool:
        return self._uploads.feeds(key)

    def _is_on_disk(self, key: Key) -> bool:
        arena, location = self._whole(key)
        return arena.path_of(location).parent != self._directory

    def _is_viewed(self, key: Key) -> bool:
        arena, location = self._whole(key)
        return arena.is_viewed(location)

    def _whole(self, key: Key) -> tuple[Arena, Location]:
        location = self._incoming[key].location
        assert self._arena is not None
        assert location is not None
        return self._arena, location

    def _drain(self) -> None:
        """Carry out what the cores want."""
        pulls, uploads = self._pulls.outbox, self._uploads.outbox
        while pulls:
            effects = pulls[:]
            pulls.clear()
            for effect in effects:
                match effect:
                    case Fetch():
                        self._fetch(effect)
                    case Stop(_, number):
                        self._stop(number)
                    case Discard(key):
                        self._discard(key)
                    case Answer(client_number, req, location, error, cause):
                        client = self._clients.get(client_number)
                        if client is not None:
                            client.send(Pulled(req, location, error, cause))
        for notice in uploads:
            self._telling.tell(notice.place, CopiesDead(self._place, notice.locations))
        uploads.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._pulls.next_deadline()
        if deadline is not None and not self._closed:
            delay_s = max(0, deadline - monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pulls.on_tick(monotonic_ns())
        self._drain()

    def _fetch(self, fetch: Fetch) -> None:
        if self._arena is None:
            self._arena = Arena(
                self._directory,
                creator_at(self._address),
                spill_directory=self._spill_directory,
                disk_fraction=self._config.spill_disk_fraction,
                when_idle=lambda: self._tell_loop(self._share.rest_later, self._arena),
            )
        incoming = self._incoming.get(fetch.key)
        if incoming is None:
            incoming = self._incoming[fetch.key] = Incoming(fetch.key)

        def accepted(places: list[str]) -> None:
            self._tell_loop(self._pulls.on_accepted, fetch.key, fetch.attempt, places)

        attempt = Attempt(
            fetch, incoming, self._arena, self._place, self._pool, self._connect, accepted
        )
        self._attempts[fetch.attempt] = attempt
        self._begin(attempt)

    def _begin(self, attempt: Attempt) -> None:
        if self._pullers is None:
            self._pullers = ThreadPoolExecutor(self._config.pulls_at_once, "shoal-pulling")

        def run() -> None:
            try:
                outcome = attempt.run()
            except Exception as error:  # noqa: BLE001 - a defect of ours, but whoever waits must hear of an end
                if not self._closed:
                    _log.exception("an attempt to get %s failed", attempt.fetch.key)
                outcome = Broken(f"could not be used: {error}", False)
            self._tell_loop(self._on_outcome, attempt, outcome)

        if not self._closed:
            self._pullers.submit(run)

    def _stop(self, number: int) -> None:
        attempt = self._attempts[number]
        attempt.stop()
        for req, waiting in list(self._short.items()):
            if waiting is attempt:
                del self._short[req]
                # Not from inside the core's effects.
                self._loop.call_soon(self._on_outcome, attempt, Broken("was stopped", False))

    def _discard(self, key: Key) -> None:
        incoming = self._incoming.pop(key, None)
        if incoming is not None:
            assert self._arena is not None
            incoming.drop(self._arena, "the copy was dropped", self._removals.do)

    def _on_outcome(self, attempt: Attempt, outcome: Outcome) -> None:
        if self._closed:
            return
        fetch = attempt.fetch
        key, number = fetch.key, fetch.attempt
        now = monotonic_ns()
        if isinstance(outcome, Short) and not attempt.stopped:
            self._make_room(attempt, outcome.needed)
            return
        del self._attempts[number]
        match outcome:
            case Arrived():
                attempt.incoming.finish()
                location = attempt.incoming.location
                assert location is not None
                self._pulls.on_arrived(key, number, location, now)
            case Elsewhere(places):
                self._pulls.on_elsewhere(key, number, places, now)
            case Missing(reason):
                self._pulls.on_missing(key, number, reason, now)
            case Full(reason):
                if attempt.on_disk and key.location.size <= self._config.spill_batch_bytes:
                    # The disk was full: nobody else need try.
                    self._keeper.on_spilled(self._share, Spilled(0, 0, reason))
                self._pulls.on_no_room(key, number, reason, now)
            case Broken(reason, progress, refused):
                self._pulls.on_broken(key, number, reason, now, progress=progress, refused=refused)
            case Short():
                self._pulls.on_broken(key, number, "was stopped", now)
        self._drain()

    def _connect(self, place: str, made: Callable[[Link], None]) -> Link:
        """A new link (in a thread); `made` gets it before anything is said on it, so that it can be aborted."""
        sock = self._open(place)
        try:
            link = Link(sock, self._config.pull_stall_s)
            made(link)
            link.prove(self._token, self._address)
        except BaseException:
            sock.close()
            raise
        self._tell_loop(self._trim_later)
        return link

    def _trim_later(self) -> None:
        if self._trimmer is None and not self._closed:
            self._trimmer = self._loop.call_later(self._config.bulk_idle_s, self._trim)

    def _trim(self) -> None:
        self._trimmer = None
        if self._pool.trim() or self._attempts:
            self._trim_later()

    # --- room ----------------------------------------------------------------------------------------------------

    def _make_room(self, attempt: Attempt, needed: int) -> None:
        """The arena needs quota. Copies that nobody uses give theirs, before others are asked."""
        wanted = needed - self._keeper.quotas.free
        if wanted > 0 and self._pulls.on_room_wanted(wanted):
            self._drain()
            self._begin(attempt)
            return
        req = next(self._numbers)
        self._short[req] = attempt
        size = attempt.fetch.key.location.size
        self._keeper.on_request(self._share, QuotaRequest(req, needed, size))

    def some_on_disk(self) -> bool:
        """As of `disk_room.Copies`."""
        return self._arena is not None and self._arena.stats().spilled_bytes > 0

    def drop_from_disk(self, wanted: int, then: Callable[[], None]) -> bool:
        """As of `disk_room.Copies`."""
        if not self._pulls.on_disk_wanted(wanted):
            return False
        self._drain()
        self._removals.do(self._tell_loop, then)
        return True

    def _take_quota(self, message: QuotaGranted | QuotaWanted | SpillWanted) -> None:
        # The keeper is in the middle of its own work.
        self._loop.call_soon(self._on_quota, message)

    def _on_quota(self, message: QuotaGranted | QuotaWanted | SpillWanted) -> None:
        arena = self._arena
        if self._closed or arena is None:
            return
        if isinstance(message, SpillWanted):
            self._share.spill(arena, message.wanted)
            return
        if isinstance(message, QuotaWanted):
            stats = arena.stats()
            spare = stats.quota_bytes - stats.backed_bytes if not message.itself else 0
            self._pulls.on_room_wanted(message.wanted - spare - stats.warm_bytes)
            self._drain()
            self._share.give_back(arena, message.wanted, itself=message.itself)
            return
        attempt = self._short.pop(message.req, None)
        if message.granted:
            arena.grant(message.granted)
        if attempt is None:
            return
        if message.granted or message.on_disk:
            attempt.on_disk = message.on_disk
            self._begin(attempt)
        else:
            self._on_outcome(attempt, Full(message.explanation or "the object store is full"))

    # --- serving (in their threads) ------------------------------------------------------------------------------

    def _decide(self, ask: Ask) -> Upload | Elsewhere | Missing:
        answer: Future[Upload | Elsewhere | Missing] = Future()

        def decide() -> None:
            if not self._closed and answer.set_running_or_notify_cancel():
                answer.set_result(self._on_ask(ask))

        if not self._tell_loop(decide):
            raise LinkBrokenError("this daemon ends")
        try:
            return answer.result(self._config.pull_stall_s)
        except TimeoutError:
            if answer.cancel():
                raise LinkBrokenError("this daemon is too busy, or ends") from None
            # It was just being made, and what it allows must be ended.
            return answer.result()

    def _on_ask(self, ask: Ask) -> Upload | Elsewhere | Missing:
        """In the loop."""
        number = next(self._numbers)
        verdict = self._uploads.on_ask(number, ask)
        if not isinstance(verdict, Serve):
            return verdict
        key = Key(ask.place, ask.location)

        absent = partial(self._tell_loop, self._on_absent, key)
        end = partial(self._tell_loop, self._uploads.on_ended, key, number)
        open_it: Callable[[], Source]
        if verdict.stage is Stage.NONE:
            remote = self._keeper.room.remote
            stall_s = self._config.pull_stall_s
            bring = None if remote is None else partial(bring_soon, remote, stall_s / 2)
            open_it = partial(
                LockedSource, self._directory, self._spill_directory, ask.location, bring
            )
        else:
            incoming = self._incoming[key]
            assert self._arena is not None
            assert incoming.location is not None
            if verdict.stage is Stage.WHOLE:
                view = self._arena.view(incoming.location)
            else:
                view = incoming.buffer
            stall_s = self._config.pull_stall_s
            path = self._arena.path_of(incoming.location)
            open_it = partial(CopySource, path, incoming, view, stall_s)
        return Upload(open_it, verdict.places, absent, end)

    def _on_absent(self, key: Key) -> None:
        self._uploads.on_absent(key)
        self._drain()

    def _on_dead(self, message: CopiesDead | OrphansDead) -> None:
        def note() -> None:
            if isinstance(message, CopiesDead):
                self._pulls.on_dead(message.place, message.locations)
                self._drain()
            else:
                self._free_here(message.locations)

        self._tell_loop(note)

    def _tell_loop(self, event: Callable[..., object], *args: Any) -> bool:
        """Call `event` in the loop; False if it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(event, *args)
            return True
        return False

    # --- what there is -------------------------------------------------------------------------------------------

    def copies(self) -> list[Copy]:
        """What of other nodes is here, or on its way."""
        return [copy for copy in self._pulls.copies() if copy.key in self._incoming]

    def stats(self) -> ArenaStats | None:
        """The accounts of the arena that has the copies, if there is one."""
        return None if self._arena is None else self._arena.stats()

    def other_blocks(self) -> tuple[list[Location], list[Location]]:
        """Live blocks that are of no copy; and those of dropped copies that somebody still looks at."""
        if self._arena is None:
            return [], []
        known = {incoming.location for incoming in self._incoming.values()}
        blocks = self._arena.blocks()
        return [location for location in blocks.live if location not in known], blocks.freed

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Break everything off, and wait a little for the threads that serve."""
        self._closed = True
        for timer in (self._timer, self._trimmer):
            if timer is not None:
                timer.cancel()
        self._survivors.close()
        for attempt in self._attempts.values():
            attempt.stop()
        for task in self._admitting:
            task.cancel()
        servings = list(self._servings.items())
        for serving, _ in servings:
            serving.stop()
        for incoming in self._incoming.values():
            incoming.end("this daemon ends")
        self._pool.close()
        self._share.close()
        for _, thread in servings:
            thread.join(_JOIN_S)
        self._telling.close()
        if self._pullers is not None:
            # Their links are broken. One that is just connecting may take longer than anybody wants to wait.
            self._pullers.shutdown(wait=False, cancel_futures=True)
        self._incoming.clear()
        self._attempts.clear()
        self._removals.close()
        if self._arena is not None:
            self._arena.close(unlink=True)
