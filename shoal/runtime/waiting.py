"""`get`, `wait`, futures and `await`: how user code waits for objects.

A thread waits for one object at a time, in order; while it leads the reactor, all of them arrive meanwhile. Whatever a worker's
thread must do before it may block (run a task in place, hand back its queue, lend its CPU) is in `before_blocking`, which the
executor sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from shoal.errors import GetTimeoutError, ShoalError
from shoal.messages.state import AskActor, AskRequest, Findings, Survey, WhyLease
from shoal.messages.transfer import Why
from shoal.messages.values import Failed
from shoal.runtime.reentry import refuse_reentry
from shoal.runtime.refs import ObjectRef
from shoal.runtime.remote import Wanted, Wish
from shoal.runtime.tally import Tally
from shoal.runtime.values import error_of
from shoal.wire.reactor import Waiter

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.runtime.process import Process
    from shoal.runtime.remote import RemoteObjects


_WORTH_A_QUESTION_S: Final = 0.5
"""A `get` that was to wait for at least this long asks the node, too, what it has waited for."""

_ANSWER_WITHIN_S: Final = 0.2

_FEW: Final = 8
"""A `wait` for so many looks at its objects whenever anything has come: that costs least where it is called again and again."""


class Blocking(Protocol):
    """What an executor does around the waiting of its threads."""

    def run_in_place(self, entry: Entry) -> bool:
        """Run the task that makes `entry` here and now, if that may be done."""

    def lend(self) -> bool:
        """This thread is about to wait for long: give away what it holds. False if it holds nothing."""

    def take_back(self) -> None:
        """It runs again."""

    def begin_wait(self) -> int:
        """Somebody waits for an object without a thread that is inside shoal (with the lock held); what to call the wait."""

    def end_wait(self, number: int) -> None:
        """The object is there (with the lock held)."""


class GetWaiter(Waiter):
    """Waits for entries one after the other, and for the failure of any of them."""

    __slots__ = ("current", "failed")

    def __init__(self) -> None:
        super().__init__()
        self.current: Entry | None = None
        self.failed = False

    def __call__(self, entry: Entry) -> None:
        if type(entry.value) is Failed:
            self.failed = True
            self.finish()
        elif entry is self.current:
            self.finish()


class FutureWaiter:
    """Has a callback called once an entry is known; until then somebody waits without a thread that is inside shoal (with the lock
    held)."""

    __slots__ = ("_blocking", "_callback", "_process", "_wait")

    def __init__(
        self, process: Process, blocking: Blocking | None, callback: Callable[[], None]
    ) -> None:
        self._process = process
        self._blocking = blocking
        self._callback = callback
        self._wait = 0 if blocking is None else blocking.begin_wait()

    def __call__(self, _entry: Entry) -> None:
        if self._blocking is not None:
            self._blocking.end_wait(self._wait)
        self._process.callbacks.append(self._callback)


class Waiting:
    """See the module's docstring."""

    def __init__(self, process: Process, grace_us: int) -> None:
        self._process = process
        self._remote = process.store.remote
        self._grace_s = grace_us / 1e6
        self.blocking: Blocking | None = None

    # --- get -----------------------------------------------------------------------------------------------------

    def get_one(self, ref: ObjectRef[Any], timeout_s: float | None) -> Any:
        """The value of one object."""
        entry = ref._entry
        if self._remote is not None:
            return self._get_anywhere([entry], timeout_s)[0]
        if entry.value is None:
            self._await_entries((entry,), timeout_s)
        return self.load(entry)

    def get_many(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values of objects, in order."""
        entries = [ref._entry for ref in refs]
        if self._remote is not None:
            return self._get_anywhere(entries, timeout_s)
        entries = self._known(entries, timeout_s)
        load = self.load
        return [load(entry) for entry in entries]

    def _known(self, entries: list[Entry], timeout_s: float | None) -> list[Entry]:
        """The entries once all are known; or one that has failed, while others are not."""
        if any(entry.value is None for entry in entries):
            self._await_entries(entries, timeout_s)
            if any(entry.value is None for entry in entries):
                # One has failed; the others may take for ever.
                entries = [entry for entry in entries if type(entry.value) is Failed][:1]
        return entries

    def _get_anywhere(self, entries: list[Entry], timeout_s: float | None) -> list[Any]:
        """The values of objects, some of which may be at other nodes: those are brought here, all at once."""
        deadline = None if timeout_s is None else monotonic() + timeout_s
        entries = self._known(entries, timeout_s)
        remote = self._remote
        assert remote is not None
        wanted = [
            Wanted(entry.value, f"object {entry.object_id.hex()}", entry.object_id.hex())
            for entry in entries
            if remote.is_remote(entry.value)
        ]
        held: list[memoryview] = []
        if wanted and not any(type(entry.value) is Failed for entry in entries):
            held = self._bring(wanted, deadline, timeout_s)
        load = self.load
        values = [load(entry) for entry in entries]
        # Until now nothing else may have kept the copies.
        del held
        return values

    def _bring(
        self, wanted: list[Wanted], deadline: float | None, timeout_s: float | None
    ) -> list[memoryview]:
        process = self._process
        refuse_reentry(process.reactor, "shoal.get()")
        remote = self._remote
        assert remote is not None
        blocking = self.blocking
        lent = False

        def wait(wish: Wish) -> bool:
            nonlocal lent
            if blocking is not None and not lent:
                if process.reactor.wait(wish, self._left(self._soon(deadline))):
                    return True
                lent = blocking.lend()
            return process.reactor.wait(wish, self._left(deadline)) or wish.done

        try:
            return remote.get(wanted, Why.GET, wait)
        except TimeoutError as error:
            subject, missing = error.args
            what = f"{subject} is still on its way from another node"
            if len(wanted) > 1:
                verb = "is" if missing == 1 else "are"
                what = f"{missing:,} of {len(wanted):,} objects of other nodes {verb} still on the way, such as {subject}"
            raise GetTimeoutError(f"get() waited {timeout_s} s, but {what}") from None
        finally:
            if lent and blocking is not None:
                blocking.take_back()

    @staticmethod
    def _left(deadline: float | None) -> float | None:
        return None if deadline is None else max(deadline - monotonic(), 0.0)

    def load(self, entry: Entry) -> Any:
        """The value of an entry that is known."""
        value = entry.value
        if type(value) is Failed:
            raise error_of(value)
        return self._process.values.unpack(value)

    def _await_entries(self, entries: Sequence[Entry], timeout_s: float | None) -> None:
        """Wait until all entries are known, or one of them has failed."""
        process = self._process
        refuse_reentry(process.reactor, "shoal.get()")
        waiter = GetWaiter()
        with process.lock:
            pending = [entry for entry in entries if entry.value is None]
            for entry in pending:
                if entry.task is None:
                    process.borrowing.fetch(entry)
                if entry.value is None:
                    process.when_known(entry, waiter)
            process.settle()
            process.reactor.flush_locked()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        blocking = self.blocking
        lent = False
        complete = False
        try:
            for entry in pending:
                while entry.value is None:
                    if waiter.failed:
                        return
                    if blocking is not None and not lent:
                        # With a time limit it is not run here: nothing could stop it in time.
                        if deadline is None and blocking.run_in_place(entry):
                            continue
                        if self._wait_for(waiter, entry, self._soon(deadline)):
                            continue
                        # Whether it holds nothing or has lent it: once is enough.
                        lent = True
                        if not blocking.lend():
                            blocking = None
                    if not self._wait_for(waiter, entry, deadline):
                        raise self._timeout(entries, timeout_s)
            complete = True
        finally:
            if not complete:
                with process.lock:
                    for entry in pending:
                        process.forget_waiter(entry, waiter)
            if lent and blocking is not None:
                blocking.take_back()

    def _soon(self, deadline: float | None) -> float:
        soon = monotonic() + self._grace_s
        return soon if deadline is None else min(soon, deadline)

    def _wait_for(self, waiter: GetWaiter, entry: Entry, deadline: float | None) -> bool:
        """Wait for one entry, or for the failure of any; False if the time is up first."""
        process = self._process
        with process.lock:
            if entry.value is not None or waiter.failed:
                return True
            waiter.current = entry
            waiter.done = False
        timeout_s = None if deadline is None else max(deadline - monotonic(), 0.0)
        return process.reactor.wait(waiter, timeout_s) or entry.value is not None

    def _timeout(self, entries: Sequence[Entry], timeout_s: float | None) -> GetTimeoutError:
        process = self._process
        with process.lock:
            missing = [entry for entry in entries if entry.value is None]
            first, more = process.census.explain(missing[0]) if missing else ("", None)
        if more is not None and timeout_s is not None and timeout_s >= _WORTH_A_QUESTION_S:
            first += self._ask(more)
        count = (
            f"{len(missing)} of {len(entries)} objects were"
            if len(entries) > 1
            else "the object was"
        )
        return GetTimeoutError(f"get() waited {timeout_s} s, but {count} not ready: {first}")

    def _ask(self, question: AskRequest | AskActor) -> str:
        """What the node knows of a request for a worker, or the cluster of an actor that does not run. A program that polls must not wait
        for this, nor one whose node is busy."""
        node = self._process.node
        try:
            if isinstance(question, AskRequest):
                told: str = node.query(
                    lambda req: WhyLease(req, question.req), str, _ANSWER_WITHIN_S
                )
                return f" On its node: {told}" if told else ""
            found: Findings = node.query(
                lambda req: Survey(req, question, [], round(_ANSWER_WITHIN_S * 900)),
                Findings,
                _ANSWER_WITHIN_S,
            )
        except (ShoalError, TimeoutError):
            return ""
        return "".join(f" {_sentence(reason.subject)}: {reason.text}" for reason in found.reasons)

    # --- wait ----------------------------------------------------------------------------------------------------

    def wait(
        self,
        refs: list[Any],
        entries: list[Entry],
        num_returns: int,
        timeout_s: float | None,
        fetch_local: bool = True,
    ) -> tuple[list[Any], list[Any]]:
        """See `shoal.wait`; the arguments have been checked. `entries` are those of `refs`."""
        look = self._ready
        if fetch_local and self._remote is not None:
            look = self._ready_here
        ready = look(entries, num_returns)
        if len(ready) < num_returns:
            if num_returns <= _FEW:
                ready = self._wait_ready(entries, num_returns, timeout_s, look)
            else:
                tally = Tally(num_returns, self._remote if fetch_local else None)
                ready = self._wait_for_many(entries, num_returns, timeout_s, tally)
        if len(ready) == 1:
            index = ready[0]
            return [refs[index]], refs[:index] + refs[index + 1 :]
        chosen = set(ready)
        return [refs[i] for i in ready], [ref for i, ref in enumerate(refs) if i not in chosen]

    @staticmethod
    def _ready(entries: list[Entry], most: int) -> list[int]:
        found: list[int] = []
        for index, entry in enumerate(entries):
            if entry.value is not None:
                found.append(index)
                if len(found) == most:
                    break
        return found

    def _ready_here(self, entries: list[Entry], most: int) -> list[int]:
        """The same for objects that are to be on this node, too; those that are not are brought."""
        remote = self._remote
        assert remote is not None
        found: list[int] = []
        for index, entry in enumerate(entries):
            value = entry.value
            if value is not None and (not remote.is_remote(value) or remote.is_here(value)):
                found.append(index)
                if len(found) == most:
                    break
        return found

    def _wait_for_many(
        self, entries: list[Entry], num_returns: int, timeout_s: float | None, tally: Tally
    ) -> list[int]:
        process = self._process
        refuse_reentry(process.reactor, "shoal.wait()")
        with process.lock:
            for entry in entries:
                if entry.value is None and entry.task is None:
                    process.borrowing.fetch(entry)
                if entry.value is None:
                    process.when_known(entry, tally)
                else:
                    tally(entry)
            process.settle()
            process.reactor.flush_locked()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        blocking = self.blocking
        lent = False
        try:
            if blocking is not None:
                # Only what must be waited for in any case may be run here, and, as in `get`, nothing with a time limit.
                if deadline is None and num_returns == len(entries):
                    for entry in entries:
                        blocking.run_in_place(entry)
                if not process.reactor.wait(tally, self._left(self._soon(deadline))):
                    lent = blocking.lend()
            process.reactor.wait(tally, self._left(deadline))
        finally:
            with process.lock:
                for entry in entries:
                    process.forget_waiter(entry, tally)
            if lent and blocking is not None:
                blocking.take_back()
        return tally.chosen(entries)

    def _wait_ready(
        self,
        entries: list[Entry],
        num_returns: int,
        timeout_s: float | None,
        look: Callable[[list[Entry], int], list[int]],
    ) -> list[int]:
        process = self._process
        refuse_reentry(process.reactor, "shoal.wait()")
        with process.lock:
            for entry in entries:
                if entry.value is None and entry.task is None:
                    process.borrowing.fetch(entry)
            process.settle()
            process.reactor.flush_locked()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        blocking = self.blocking
        lent = False
        try:
            while True:
                waiter = Waiter()
                with process.lock:
                    process.tick_waiters.append(waiter)
                try:
                    ready = look(entries, num_returns)
                    if len(ready) >= num_returns:
                        return ready
                    limit = deadline
                    if blocking is not None and not lent:
                        # Only what must be waited for in any case may be run here, and, as in `get`, nothing with a time limit.
                        must = deadline is None and num_returns == len(entries)
                        if must and any(map(blocking.run_in_place, entries)):
                            continue
                        limit = self._soon(deadline)
                    done = process.reactor.wait(
                        waiter, None if limit is None else max(limit - monotonic(), 0.0)
                    )
                finally:
                    with process.lock:
                        if waiter in process.tick_waiters:
                            process.tick_waiters.remove(waiter)
                if done:
                    continue
                if deadline is not None and monotonic() >= deadline:
                    return look(entries, num_returns)
                if blocking is not None and not lent:
                    lent = True
                    if not blocking.lend():
                        blocking = None
        finally:
            if lent and blocking is not None:
                blocking.take_back()

    # --- futures -------------------------------------------------------------------------------------------------

    def _when_ready(self, entry: Entry, callback: Callable[[Any], None]) -> None:
        """Call `callback` (by the reactor's leader, without the lock) once the entry is known, and here; with what keeps it
        here, if anything must."""
        if self._remote is None:
            self._when_known(entry, functools.partial(callback, None))
        else:
            self._when_known(entry, functools.partial(self._fetch, self._remote, entry, callback))

    def _fetch(self, remote: RemoteObjects, entry: Entry, callback: Callable[[Any], None]) -> None:
        """An entry is known: bring its value here, without waiting for it."""
        if not remote.is_remote(entry.value):
            callback(None)
            return

        def known(wish: Wish) -> None:
            self._process.callbacks.append(functools.partial(taken, wish))

        def taken(wish: Wish) -> None:
            try:
                view = remote.take(wish, "")
            except ShoalError:
                # Whoever loads it is told why, by asking again.
                view = None
            callback(view)

        remote.begin(entry.value, Why.GET, known)
        self._process.reactor.flush()

    def _when_known(self, entry: Entry, callback: Callable[[], None]) -> None:
        process = self._process
        refuse_reentry(process.reactor, "a future of a reference")
        with process.lock:
            if entry.value is None:
                if entry.task is None:
                    process.borrowing.fetch(entry)
                process.when_known(entry, FutureWaiter(process, self.blocking, callback))
                process.settle()
                process.reactor.flush_locked()
                known = False
            else:
                known = True
        if known:
            callback()
        else:
            process.reactor.want_service()

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A concurrent future of the value. Cancelling it does not cancel the task."""
        future: Future[Any] = Future()
        # The reference must live until the value is there.
        self._when_ready(ref._entry, functools.partial(self._resolve, future, ref))
        return future

    def _resolve(self, future: Future[Any], ref: ObjectRef[Any], _held: Any) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = self.load(ref._entry)
        except BaseException as error:  # noqa: BLE001 - whatever the user's code raised goes to whoever waits
            future.set_exception(error)
        else:
            future.set_result(value)

    def wait_for(self, entry: Entry, timeout_s: float | None) -> bool:
        """Wait until an entry is known; False if the time is up first."""
        try:
            self._await_entries((entry,), timeout_s)
        except GetTimeoutError:
            return False
        return True

    async def known_on_loop(self, entry: Entry) -> Any:
        """Wait on the running loop until an entry is known, and here; what keeps it here."""
        loop = asyncio.get_running_loop()
        happened: asyncio.Future[Any] = loop.create_future()
        self._when_ready(entry, functools.partial(_tell_loop, loop, happened))
        return await happened

    async def on_loop(self, ref: ObjectRef[Any]) -> Any:
        """`await ref`."""
        entry = ref._entry
        held = None
        if entry.value is None or (
            self._remote is not None and self._remote.is_remote(entry.value)
        ):
            held = await self.known_on_loop(entry)
        value = self.load(entry)
        del held
        return value


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tell_loop(loop: asyncio.AbstractEventLoop, happened: asyncio.Future[Any], held: Any) -> None:
    def tell() -> None:
        if not happened.done():
            happened.set_result(held)

    # The loop may end at any moment: then nobody waits on it any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)
