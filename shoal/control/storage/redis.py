"""Storage in Redis or Valkey, which outlives the machine of the head: another head can take the cluster over.

::

    commit(A) commit(B) commit(C) ──► queue ──► one task: takes all ──► one pipeline: a script for each commit
                                                                               │
       futures done, in order  ◄────────────────────────────────────────── answers

Every key begins with `shoal:{<cluster>}:`, so that clusters share a server; each table is a hash. (The braces put all keys of
one cluster into one slot, where a server has slots.)

**A commit is one script** (`redis_scripts`), which the server runs as a whole. It says who leads and the number of the commit, and writes
only if both fit. Hence a commit takes effect once, however often it is sent, and never out of order, also when the
server reads what is left of an old connection after it has heard from the new one. A MULTI could not look before it writes, and what
fails inside of one leaves the rest of it done.

**Durable** means what the server's configuration makes of it, since its answer is all that can be waited for. `appendfsync always`: synced
before the answer. `everysec`: handed to the system before the answer, synced within a second or two; a crash of the server loses next to
nothing, a power failure that long. Neither (snapshots only): what is in the server's memory; a warning is logged. `?wait=N` waits for N
replicas in addition. On top of that, commits that were acknowledged lately are kept here (`_TAIL_…`), and a server that comes back, or a
replica that takes its place, without the last of them gets them again. If it lacks more, the storage fails and says so.

**Only one writes.** A control store takes the lead at `load`: a lease that it renews, and a token in front of every commit. Another
that finds the lease renewed is refused (`StorageInUse`), or waits (`?standby=yes`), and takes over once it expires. The old leader, if it
still lives, finds its next commit or renewal refused: `LeadershipLost`. Between the two it may still answer questions from its memory.

Needs Redis 6 or any Valkey. One commit may have `_MOST_WRITES` writes, a value 512 MB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NoReturn, cast

import redis.exceptions as errors

from shoal.control.storage import (
    FAILED,
    OK,
    LeadershipLost,
    StorageAddressError,
    StorageError,
    StorageInUse,
    StorageState,
    StorageUnavailable,
    Tables,
    Write,
)
from shoal.control.storage import redis_scripts as scripts
from shoal.control.storage.redis_address import RedisAddress
from shoal.errors import InternalError

_log = logging.getLogger("shoal.control.storage")

_FIRST_CONTACT_S: Final = 5.0
"""How long `load` tries to reach the server: whoever mistyped the address should not wait a minute for the news."""

_CLOSE_S: Final = 5.0
"""How long `close` tries to bring home what was committed, where the server does not answer."""

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0

_BATCH_BYTES: Final = 8 * 1024 * 1024
"""About this much goes into one pipeline. More: fewer turns; longer ones, in which the lease is not renewed."""

_MOST_WRITES: Final = 300_000
"""A command may have 1,048,576 arguments, and a write needs three."""

_TAIL_COMMITS: Final = 10_000
_TAIL_BYTES: Final = 16 * 1024 * 1024
"""Acknowledged commits that are kept for a server that comes back without them: more than a busy control store makes in a few seconds."""

_CLUSTER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

# What a server says when it is not well now and may be later. Inside a script's error such a word may stand anywhere.
_TRANSIENT: Final = re.compile(
    r"\b(LOADING|MISCONF|OOM|READONLY|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|BUSY|UNKILLABLE)\b"
)


class _Away(Exception):  # noqa: N818 - where the server is
    """The server is not there, or not well. Trying again may help."""


class _Commit:
    __slots__ = ("arguments", "durable", "keys", "number", "size_bytes")

    def __init__(
        self, number: int, writes: Sequence[Write], durable: asyncio.Future[None], prefix: str
    ) -> None:
        self.number = number
        self.durable = durable
        self.keys: list[str] = []
        self.arguments: list[bytes | int] = []
        self.size_bytes = 100
        index: dict[str, int] = {}
        for table, key, value in writes:
            at = index.get(table)
            if at is None:
                at = index[table] = len(index) + 1
                self.keys.append(f"{prefix}table:{table}")
            self.arguments += (-at, key, b"") if value is None else (at, key, value)
            self.size_bytes += 100 + len(key) + len(value or b"")


class RedisStorage:
    """See the module's docstring. `retry_s` is how long a server that is away is tried again, `lease_s` how long the lead
    lasts unless it is renewed: lower, and a successor takes over sooner, also from one who was only slow."""

    def __init__(
        self, address: RedisAddress, cluster: str, *, retry_s: float = 60.0, lease_s: float = 10.0
    ) -> None:
        if not _CLUSTER.fullmatch(cluster):
            raise StorageAddressError(
                f"{cluster!r} cannot be a cluster's name in Redis: take 1 to 64 letters, digits, '.', '_' or '-'"
            )
        self.state = StorageState()
        self._address = address
        self._cluster = cluster
        self._prefix = f"shoal:{{{cluster}}}:"
        self._retry_s = retry_s
        self._lease_s = lease_s
        self._client, self._sentinels = address.client()
        self._token = f"{socket.gethostname()}, pid {os.getpid()} [{secrets.token_hex(8)}]"
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._released = False
        self._failure: StorageError | None = None
        # What leading began with, and the number of the last commit taken.
        self._epoch = 0
        self._base = 0
        self._last = 0
        self._pending: deque[_Commit] = deque()
        # Commits that were acknowledged, and the number of the last; the number of the last one dropped, and the bytes there.
        self._tail: deque[_Commit] = deque()
        self._acknowledged = 0
        self._dropped = 0
        self._tail_bytes = 0
        # When the lease is to be renewed. Never longer ago than the last renewal that was answered.
        self._renew_at = 0.0
        # What the server has is not known: a connection broke, or an answer did not fit.
        self._unsure = False

    # --- for the control store -----------------------------------------------------------------------------------

    async def load(self) -> Tables:
        if self._task is not None:
            raise InternalError("a storage was loaded twice")
        try:
            await self._take_the_lead()
            # Renews from now on, also while a long load runs.
            self._task = asyncio.create_task(self._run(), name="shoal-storage")
            tables = await self._read()
            await self._warn_if_forgetful()
        except BaseException:
            await self.close()
            raise
        return tables

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        if self._task is None or self._closing:
            raise InternalError(
                "a commit came before the storage was loaded, or after it was closed"
            )
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(writes) > _MOST_WRITES:
            self._fail(
                StorageError(
                    f"a commit of {len(writes)} writes is more than the {_MOST_WRITES} that Redis storage can "
                    "apply as a whole"
                )
            )
        if self._failure is not None:
            durable.set_exception(self._failure)
            return durable
        self._last += 1
        self._pending.append(_Commit(self._last, writes, durable, self._prefix))
        self._wake.set()
        return durable

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        away = isinstance(self._failure, StorageUnavailable)
        if self._task is not None and not away and not self._released:
            self._released = True
            try:
                await self._run_script(scripts.RELEASE, [self._token])
            except (_Away, StorageError) as error:
                _log.info("the lead was not given back, and will expire: %s", error)
        for client in (self._client, *self._sentinels):
            await client.aclose()

    # --- taking the lead -----------------------------------------------------------------------------------------

    async def _take_the_lead(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        pause = _FIRST_PAUSE_S
        holder, expires_ms = b"", 0
        while True:
            asked = loop.time()
            try:
                answer = await self._run_script(
                    scripts.ACQUIRE, [self._token, self._lease_ms, scripts.VERSION]
                )
            except _Away as error:
                if self._closing or (
                    loop.time() - started > _FIRST_CONTACT_S and not self._address.standby
                ):
                    raise StorageUnavailable(
                        f"the storage {self._address.shown} cannot be used: {error}. Check the address, and that the "
                        "server runs"
                    ) from error
                pause = await self._pause(error, pause)
                continue
            match answer:
                case [b"led", epoch, applied]:
                    self._epoch = epoch
                    self._base = self._last = self._acknowledged = self._dropped = applied
                    self._renew_at = asked + self._lease_s / 3
                    self.state.become(OK)
                    return
                case [b"newer", version]:
                    raise StorageError(
                        f"cluster {self._cluster!r} in {self._address.shown} was written by a newer shoal (layout "
                        f"{version.decode()}; this one knows {scripts.VERSION}): use that one, or another cluster name"
                    )
                case [b"held", token, ms]:
                    # Whose lease has more time left than before is renewed: somebody lives. One that only runs
                    # down is of a control store that died, or that cannot reach the server.
                    if token == holder and ms > expires_ms and not self._address.standby:
                        raise StorageInUse(
                            f"cluster {self._cluster!r} in {self._address.shown} is led by another control store "
                            f"({_who(token)}): stop it, name another cluster, or add ?standby=yes to wait and take over"
                        )
                    holder, expires_ms = token, ms
                    self.state.become(f"waiting: the cluster is led by {_who(token)}")
                    await asyncio.sleep(min(self._lease_s / 10, max(ms, 10) / 1000))
                case _:
                    raise InternalError(f"a script answered {answer!r}")

    async def _read(self) -> Tables:
        tables: Tables = {}
        start = f"{self._prefix}table:".encode()
        try:
            names = await cast(
                Awaitable[set[bytes]], self._client.smembers(f"{self._prefix}tables")
            )
            for name in sorted(names):
                rows = await cast(
                    Awaitable[dict[bytes, bytes]], self._client.hgetall(name.decode())
                )
                if rows:
                    tables[name.removeprefix(start).decode()] = rows
        except errors.RedisError as error:
            raise StorageError(
                f"the storage {self._address.shown} cannot be read: {error}"
            ) from error
        return tables

    async def _warn_if_forgetful(self) -> None:
        try:
            about = await self._client.info("persistence")
        except errors.RedisError as error:
            _log.debug("the server does not tell how it persists: %s", error)
            return
        if not about.get("aof_enabled", 1):
            _log.warning(
                "the storage %s keeps no append-only file: what the server has not saved is lost when it ends. Set "
                "appendonly to yes, and appendfsync to always or everysec",
                self._address.shown,
            )

    # --- writing: the one task that sends ------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while self._failure is None and (self._pending or not self._closing):
                await self._exchange_or_wait_out()
                if not self._pending and not self._closing:
                    await self._sleep_until(self._renew_at)
        except StorageError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a task that dies in silence would leave its futures undone for ever
            unforeseen = StorageError(f"the storage {self._address.shown} failed: {error!r}")
            unforeseen.__cause__ = error
            self._fail(unforeseen)

    async def _exchange_or_wait_out(self) -> None:
        """One round trip that works, if need be after others that did not, for as long as is allowed."""
        loop = asyncio.get_running_loop()
        away_since = 0.0
        pause = _FIRST_PAUSE_S
        while True:
            try:
                if self._unsure:
                    await self._find_out()
                await self._exchange()
            except _Away as error:
                self._unsure = True
                if self._closing and not self._pending:
                    return
                now = loop.time()
                away_since = away_since or now
                allowed = min(self._retry_s, _CLOSE_S) if self._closing else self._retry_s
                if now - away_since >= allowed:
                    raise StorageUnavailable(
                        f"the storage {self._address.shown} has been away for {allowed:g} s: {error}. Nothing that was "
                        "acknowledged depends on what was not written: start the head again when the server is back"
                    ) from error
                pause = await self._pause(error, pause)
            else:
                self.state.become(OK)
                return

    async def _pause(self, why: _Away, pause_s: float) -> float:
        """Say that it is tried again, and wait before it is; how long to wait the next time."""
        self.state.become(f"retrying: {why}")
        await asyncio.sleep(pause_s)
        return min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _sleep_until(self, when: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout_at(when):
                await self._wake.wait()
        except TimeoutError:
            return  # time to renew

    async def _exchange(self) -> None:
        """Send what waits and, if it is time, renew the lease; take the answers."""
        now = asyncio.get_running_loop().time()
        commits = _up_to(self._pending, _BATCH_BYTES)
        calls: list[_Call] = []
        # WAIT asks for what this connection has written. Commits that are sent again after an answer was lost write
        # nothing any more; the renewal does, behind whatever came before it.
        renews = now >= self._renew_at or (self._address.wait > 0 and bool(commits))
        if renews:
            calls.append(_Call(scripts.RENEW, [], self._renewal()))
        calls += [self._call_for(commit) for commit in commits]
        if not calls:
            return
        answers = await self._ask(calls, wait=bool(commits))
        if self._failure is not None:
            raise self._failure
        if renews:
            renewed = answers.pop(0)
            if renewed[0] == b"lost" or renewed[1] < self._acknowledged:
                raise _Away("the server has forgotten who leads, or what it was told")
            self._renew_at = now + self._lease_s / 3
        for answer in answers:
            if answer[0] != b"done":
                # What it means is decided with the whole picture.
                raise _Away("the server lacks earlier commits, or has another leader")
        for commit in commits:
            self._pending.popleft()
            if not commit.durable.done():
                commit.durable.set_result(None)
            self._remember(commit)

    async def _find_out(self) -> None:
        """After anything unforeseen: see that this store still leads, and send again what the server lacks."""
        now = asyncio.get_running_loop().time()
        (answer,) = await self._ask([_Call(scripts.RENEW, [], self._renewal())], wait=False)
        if answer[0] == b"lost":
            self._lose(*answer[1:])
        self._renew_at = now + self._lease_s / 3
        applied = answer[1]
        if applied > self._last:
            raise StorageError(
                f"the storage {self._address.shown} has commit {applied} of this leader, which made {self._last}: "
                "somebody else has written there"
            )
        if applied < self._dropped:
            self._forgot(applied)
        lost = [commit for commit in self._tail if commit.number > applied]
        if lost:
            _log.warning(
                "the storage came back without the last %d commits; they go again", len(lost)
            )
        while lost:
            batch = _up_to(lost, _BATCH_BYTES)
            for again in await self._ask([self._call_for(c) for c in batch], wait=False):
                if again[0] != b"done":
                    raise _Away("the server changed again")
            del lost[: len(batch)]
        self._unsure = False

    def _remember(self, commit: _Commit) -> None:
        self._acknowledged = commit.number
        self._tail.append(commit)
        self._tail_bytes += commit.size_bytes
        while len(self._tail) > _TAIL_COMMITS or self._tail_bytes > _TAIL_BYTES:
            dropped = self._tail.popleft()
            self._tail_bytes -= dropped.size_bytes
            self._dropped = dropped.number

    def _fail(self, error: StorageError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self.state.become(f"{FAILED}{error}")
        self._wake.set()
        while self._pending:
            durable = self._pending.popleft().durable
            if not durable.done():
                durable.set_exception(error)

    def _lose(self, token: bytes, epoch: int, applied: int) -> NoReturn:
        if epoch < self._epoch and applied < self._dropped:
            self._forgot(applied)
        raise LeadershipLost(
            f"this control store does not lead cluster {self._cluster!r} any more: its lease ran out, and another one "
            f"({_who(token)}) took over. Whatever was acknowledged here was written before; nothing more will be"
        )

    def _forgot(self, applied: int) -> NoReturn:
        raise StorageError(
            f"the storage {self._address.shown} came back without what it had acknowledged: it has commits up to "
            f"{applied}, and those up to {self._dropped} are not kept here any more. Restore its data; set appendonly to "
            "yes, or ?wait=N with replicas, so that it does not happen again"
        )

    # --- talking to the server -----------------------------------------------------------------------------------

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_s * 1000)

    def _renewal(self) -> list[Any]:
        return [self._token, self._lease_ms, scripts.VERSION, self._epoch, self._base]

    def _call_for(self, commit: _Commit) -> _Call:
        keys = [f"{self._prefix}tables", *commit.keys]
        return _Call(scripts.COMMIT, keys, [self._token, commit.number, *commit.arguments])

    async def _run_script(self, script: str, arguments: list[Any]) -> Any:
        (answer,) = await self._ask([_Call(script, [], arguments)], wait=False)
        return answer

    async def _ask(self, calls: list[_Call], *, wait: bool) -> list[Any]:
        """One pipeline.

        Raises:
            _Away: no answer, or one that may be better later.
            StorageError: a refusal for good.
        """
        replicas = self._address.wait if wait else 0
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for call in calls:
                    keys = [f"{self._prefix}meta", f"{self._prefix}lease", *call.keys]
                    pipeline.eval(call.script, len(keys), *keys, *call.arguments)
                if replicas:
                    # Less than the time that the client grants for an answer.
                    pipeline.execute_command("WAIT", replicas, 3000)
                answers = await pipeline.execute(raise_on_error=False)
        except (errors.RedisError, OSError) as error:
            raise self._sorted(error) from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._sorted(answer) from answer
        if replicas and (confirmed := answers.pop()) < replicas:
            raise _Away(f"{confirmed} of {replicas} replicas have confirmed")
        return answers

    def _sorted(self, error: Exception) -> Exception:
        """`_Away`, or what is not mended by waiting."""
        text = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError):
            return StorageError(
                f"the storage {self._address.shown} refuses the user or password: {text}. Both stand in the address, "
                "before the @, with %XX for characters that mean something there"
            )
        if isinstance(_root(error), ssl.SSLCertVerificationError):
            return StorageError(
                f"the storage {self._address.shown} shows a certificate that is not trusted: {text}. Name the "
                "authority that signed it with ?tls_ca=FILE"
            )
        if isinstance(error, errors.ConnectionError | errors.TimeoutError | OSError):
            return _Away(text)
        if isinstance(error, errors.ReadOnlyError) or _TRANSIENT.search(text):
            return _Away(text)
        return StorageError(f"the storage {self._address.shown} refuses: {text}")


class _Call:
    """A script with its keys after the first two, and its arguments."""

    __slots__ = ("arguments", "keys", "script")

    def __init__(self, script: str, keys: list[str], arguments: list[Any]) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments


def _up_to(commits: deque[_Commit] | list[_Commit], size_bytes: int) -> list[_Commit]:
    """The first few: of about this size, and one at least."""
    taken: list[_Commit] = []
    for commit in commits:
        taken.append(commit)
        size_bytes -= commit.size_bytes
        if size_bytes <= 0:
            break
    return taken


def _who(token: bytes) -> str:
    return token.decode(errors="replace").partition(" [")[0]


def _root(error: BaseException) -> BaseException:
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
