"""The reactor of a driver or worker: who reads the sockets, and when.

There is no thread whose only work is to read sockets and hand results to others: a hop between two threads costs more
than a task. Instead whichever thread has nothing better to do *leads*: it polls, receives, and updates the runtime's
state, until what it waits for has happened.

- A thread that waits (`wait`) leads if nobody does; otherwise it follows: it sleeps until what it waits for is done or
  leadership falls to it.
- The *service thread* leads when nobody else has for a while (`watch_us`): user code is running, but peers must be
  served and batches must leave. As soon as another thread wants to wait, the service thread steps down for it.

So in a loop of `get(f.remote())`, in a worker that runs short tasks, and in nested calls, nothing ever hops; and in a
program that computes for seconds, messages are served within milliseconds all the same.

Guarantees: (1) at any time at most one thread polls; (2) if a thread waits, some thread polls; (3) whatever is in
`dirty` is flushed within about `watch_us`, even if no thread ever waits; whoever adds to it while another thread may sleep in
a poll says so by `nudge`.

How (2) holds: a follower first puts itself into `_followers`, then tries once more to take the leadership; a leader first
gives the leadership up, then looks into `_followers`. Whatever the interleaving, one of the two sees the other. The same
argument covers the service thread's sleep: it sets `_dozing`, then looks whether leadership is free; a leader gives
leadership up, then looks at `_dozing`.

Whoever leads does so by chance. So what a handler, a timer or `after_poll` raises is a defect of ours that is logged, and never
reaches a user's call; only what ends the user's code (Ctrl-C) does.

Threads: `handlers` are called by the leader only. `lock` is the runtime's lock and guards `dirty`, `_followers`, the timers.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import mmap
import os
import select
import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.lock import make_lock

if TYPE_CHECKING:
    from _thread import LockType

    from shoal.lock import ReentrantLock
    from shoal.wire.connection import Connection

logger = logging.getLogger("shoal")

_FOREVER: Final = -1.0
_LONGEST_S: Final = 1e6  # epoll counts milliseconds in 32 bits; who waits longer waits again
_QUIET_LOOKS: Final = 3
_HOST_PATIENCE_S: Final = 0.05
_MAX_EVENTS: Final = 64
_CLOSE_PATIENCE_S: Final = 1.0
_RECEIVE_BYTES: Final = 256 * 1024


class Waiter:
    """Something a thread waits for. `done` is set (through `finish`, with the lock held) when it has happened."""

    __slots__ = ("done", "gate")

    def __init__(self) -> None:
        self.done = False
        self.gate: LockType | None = None

    def finish(self) -> None:
        """It has happened; wake the thread if it sleeps. Called with the lock held, once or more often."""
        self.done = True
        gate = self.gate
        if gate is not None and gate.locked():
            _open(gate)


def _open(gate: LockType) -> None:
    try:
        gate.release()
    except RuntimeError:
        # A signal handler (`interrupt`) opened it in the same moment.
        return


class Reactor:
    """See the module's docstring."""

    def __init__(self, lock: ReentrantLock, watch_us: int, name: str = "shoal-service") -> None:
        self.lock = lock
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.dirty: list[Connection] = []
        self.behind: set[int] = set()
        """Descriptors of connections with bytes that the kernel has not taken yet."""
        self.after_poll: Callable[[], None] | None = None
        """Called by the leader after each round, without the lock: callbacks of users, asyncio wake-ups."""
        self.interrupted: Callable[[], None] | None = None
        """Called by a waiting thread between two rounds; may raise (a deferred Ctrl-C)."""
        self.watch: Callable[[], None] | None = None
        """Called by the service thread, without the lock, whenever it looks in: user code has been running for a while."""
        self.hosted = False
        """An asyncio loop of this process polls (by `pump`, whenever `fileno` is readable); the service thread only
        steps in while that loop is stuck in user code."""
        self.asleep = False
        """Nobody will look at `backlog` before an event comes."""
        self.backlog: Sized = ()
        """What `after_poll` attends to; not empty keeps the leader from sleeping."""
        self._epoll = select.epoll()
        # One buffer for all connections: whatever is received is decoded before the next read. (A fresh one for each read
        # would be mapped and unmapped by the allocator each time.) Its pages come as they are used: most workers of a
        # thousand never receive much.
        self.receive_buffer = mmap.mmap(
            -1, _RECEIVE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self.received = memoryview(self.receive_buffer)
        # Polls the epoll descriptor itself: is there anything to poll?
        self._poller = select.poll()
        self._poller.register(self._epoll.fileno(), select.POLLIN)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.handlers[self._wake_fd] = self._on_wake
        self._leadership = allocate_lock()
        self._leader = 0
        # Threads that lead or follow: user code that Python runs in the middle of that must not do the same again.
        self._waiting: set[int] = set()
        self._followers: dict[Waiter, None] = {}
        self._turns = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._watch_s = watch_us / 1e6
        self._bell = allocate_lock()
        self._bell.acquire()
        self._dozing = False
        self._service_leads = False
        self._service_wanted = False
        self._closed = False
        self._woken = False
        self._step_down = False
        self._service_ident = 0
        self._service = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Start the service thread."""
        self._service.start()

    # --- descriptors ---------------------------------------------------------------------------------------------

    def register(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call `handler(mask)` whenever `fd` is readable."""
        self.handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def modify(self, fd: int, mask: int) -> None:
        """Watch `fd` for another set of events."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Watch `fd` no more. Must precede its closing."""
        self.behind.discard(fd)
        if self.handlers.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def fileno(self) -> int:
        """The epoll descriptor, which is readable when there is something to poll (for an asyncio loop)."""
        return self._epoll.fileno()

    # --- timers (with the lock) ----------------------------------------------------------------------------------

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` (by the leader, without the lock) after a delay. There is no cancelling: callbacks look at the
        state that they find."""
        self.call_at(monotonic() + delay_s, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """The same, at a moment of `time.monotonic`."""
        heapq.heappush(self._timers, (when, next(self._timer_numbers), callback))
        leader = self._leader
        if self.hosted or (leader and leader != get_ident()):
            self.wake()

    def until_next_timer(self) -> float | None:
        """Seconds until a timer is due, for an asyncio loop that polls; None if there is none."""
        timers = self._timers
        return max(timers[0][0] - monotonic(), 0.0) if timers else None

    def _run_timers(self) -> None:
        # One at a time: should one be interrupted, the others stay in the heap.
        now = monotonic()
        while True:
            with self.lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                callback = heapq.heappop(self._timers)[2]
            try:
                callback()
            except Exception:
                logger.exception("what was due could not be done")

    # --- polling (the leader) ------------------------------------------------------------------------------------

    def _poll(self, timeout_s: float) -> None:
        """One round: wait for events at most `timeout_s` (negative: for ever), handle them, flush."""
        self._turns += 1
        timers = self._timers
        if timers:
            until_due = min(max(timers[0][0] - monotonic(), 0.0), _LONGEST_S)
            if timeout_s < 0 or until_due < timeout_s:
                timeout_s = until_due
        self.asleep = True
        if self.backlog:
            # It grew after the last look, perhaps by somebody who saw us awake.
            timeout_s = 0.0
        try:
            events = self._epoll.poll(timeout_s, _MAX_EVENTS)
        finally:
            # While an asyncio loop does the waiting, it is asleep whenever this does not run.
            self.asleep = self.hosted
        handlers = self.handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(mask)
                except Exception:
                    # A defect of ours, and none of the business of whoever happens to lead.
                    logger.exception("a message could not be handled")
        if timers:
            self._run_timers()
        if self.dirty:
            self.flush()
        if self.after_poll is not None:
            try:
                self.after_poll()
            except Exception:
                logger.exception("what follows from the messages could not be done")

    def flush(self) -> None:
        """Send every pending batch. Any thread."""
        with self.lock:
            self.flush_locked()

    def flush_locked(self) -> None:
        """Send every pending batch; the caller holds the lock."""
        dirty = self.dirty
        while dirty:
            dirty.pop().flush()

    @property
    def service_leads(self) -> bool:
        """Whether user code keeps every other thread from the sockets."""
        return self._service_leads

    def pump(self) -> None:
        """Poll once without waiting, if nobody leads: lets a thread that submits in a loop keep the work flowing.

        A service thread that leads is asked to step down: this thread is at the sockets often enough.
        """
        me = get_ident()
        if me in self._waiting:
            return
        self._waiting.add(me)
        try:
            leads = self._leadership.acquire(False)
            if leads:
                self._leader = me
                try:
                    self._poll(0)
                finally:
                    self._give_up_leadership()
        finally:
            self._waiting.discard(me)
        if not leads and self._service_leads:
            self._step_down = True
            self.wake()

    # --- waiting -------------------------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Wait until `waiter.done`; False if the time is up first.

        Whatever interrupts the waiting (Ctrl-C) leaves the reactor in order.
        """
        if waiter.done:
            return True
        deadline = None if timeout_s is None else monotonic() + timeout_s
        me = get_ident()
        # Before leadership is taken and until after it is given up: at no moment in between is a second wait possible.
        self._waiting.add(me)
        try:
            if self._leader == me:
                # A callback of ours waits in turn: it goes on leading.
                self._lead(waiter, deadline)
                return waiter.done
            while not waiter.done:
                if self._leadership.acquire(False):
                    self._leader = me
                    try:
                        self._lead(waiter, deadline)
                    finally:
                        self._give_up_leadership()
                    return waiter.done
                if not self._follow(waiter, deadline):
                    return waiter.done
            return True
        finally:
            self._waiting.discard(me)

    def is_entered(self) -> bool:
        """Whether this thread is in the middle of waiting, or of handling messages: user code that Python runs there (a
        finalizer, a signal handler) must not wait."""
        return get_ident() in self._waiting or self.lock._is_owned()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Around callbacks that the leader calls between two rounds: they may wait."""
        me = get_ident()
        entered = me in self._waiting
        self._waiting.discard(me)
        try:
            yield
        finally:
            if entered:
                self._waiting.add(me)

    def _lead(self, waiter: Waiter, deadline: float | None) -> None:
        poll = self._poll
        while not waiter.done:
            # A signal that comes after this look makes the poll return.
            if self.interrupted is not None:
                self.interrupted()
            if deadline is None:
                poll(_FOREVER)
            else:
                left_s = deadline - monotonic()
                poll(min(max(left_s, 0.0), _LONGEST_S))
                if left_s <= 0:
                    return

    def _follow(self, waiter: Waiter, deadline: float | None) -> bool:
        """Sleep until `waiter` is done or leadership is free; False if the time is up."""
        with self.lock:
            if waiter.done:
                return True
            gate = waiter.gate
            if gate is None:
                gate = waiter.gate = allocate_lock()
            if not gate.locked():
                gate.acquire()
            self._followers[waiter] = None
            if self._service_leads:
                self.wake()
        try:
            if not self._leadership.locked():
                return True
            # A signal that comes after this look opens the gate.
            if self.interrupted is not None:
                self.interrupted()
            if deadline is None:
                gate.acquire()
            elif not gate.acquire(timeout=min(max(deadline - monotonic(), 0.0), _LONGEST_S)):
                return monotonic() < deadline
            return True
        finally:
            with self.lock:
                self._followers.pop(waiter, None)
            # Whoever woke us may have meant to pass the leadership on; if we leave instead, pass it further.
            if not self._leadership.locked():
                self._pass_on()

    def _give_up_leadership(self) -> None:
        self._leader = 0
        self._leadership.release()
        if self._followers:
            self._pass_on()
        if self._dozing:
            self._ring()

    def _pass_on(self) -> None:
        with self.lock:
            for waiter in self._followers:
                if not waiter.done:
                    gate = waiter.gate
                    if gate is not None and gate.locked():
                        _open(gate)
                        return

    # --- the service thread --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the leader's current poll return."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    def interrupt(self) -> None:
        """Make every waiting thread look at `interrupted`. Called from a signal handler: takes no lock."""
        self.wake()
        for waiter in list(self._followers):
            gate = waiter.gate
            if gate is not None and gate.locked():
                _open(gate)

    def _on_wake(self, _mask: int) -> None:
        # In this order. Whoever wakes us before the flag falls is not heard by the kernel, but we look at everything after
        # this. The other way round, the read could take a second call with it and leave the flag up: nobody would
        # ever wake us again.
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return
        finally:
            self._woken = False

    def _ring(self) -> None:
        if self._bell.locked():
            try:
                self._bell.release()
            except RuntimeError:
                # Two threads rang at the same time: one ring is enough.
                return

    def rouse(self) -> None:
        """`backlog` has grown. May run in the garbage collector, with any lock held: it takes none."""
        if self.asleep:
            self.asleep = False
            self.wake()

    def nudge(self) -> None:
        """Something waits in `dirty` or for the sockets, and the caller will not wait: see that it is served soon."""
        if self._service_leads or self.hosted:
            self.wake()
        elif self._dozing:
            self._ring()

    def host(self) -> None:
        """An asyncio loop of this process polls from now on. A service thread that leads leaves it to the loop."""
        self.hosted = True
        self.wake()

    def want_service(self) -> None:
        """Somebody waits without a thread that leads (a future, an asyncio loop): the service thread takes over now."""
        if not self.hosted:
            self._service_wanted = True
            self._ring()

    def _serve(self) -> None:
        self._service_ident = get_ident()
        quiet = 0
        turns = -1
        while not self._closed:
            if self.hosted:
                self._look_after_host()
                continue
            if self._leadership.locked():
                # Somebody leads. If that goes on without a single turn, it waits for long: doze until it is over.
                quiet = quiet + 1 if turns == self._turns else 0
                turns = self._turns
                if quiet >= _QUIET_LOOKS:
                    self._doze()
                    quiet = 0
                    turns = self._turns
            elif turns == self._turns or self._service_wanted:
                # Whoever made it step down comes next: it looks in again only after a while.
                self._lead_service()
                turns = self._turns
            else:
                turns = self._turns
            self._look_in()
            self._bell.acquire(timeout=self._watch_s)

    def _doze(self) -> None:
        self._dozing = True
        if self._leadership.locked() and not self._closed:
            self._bell.acquire()
        self._dozing = False

    def _look_in(self) -> None:
        try:
            if self.dirty:
                self.flush()
            if self.backlog and self.after_poll is not None:
                self.after_poll()
            if self.watch is not None:
                self.watch()
        except Exception:
            # As below: this thread may be the only one left to serve.
            logger.exception("looking after the process's messages failed")

    def _lead_service(self) -> None:
        me = get_ident()
        self._waiting.add(me)
        if not self._leadership.acquire(False):
            self._waiting.discard(me)
            return
        self._leader = me
        self._service_wanted = False
        self._step_down = False
        try:
            self._service_leads = True
            self._look_in()
            while not (self._closed or self._followers or self._step_down or self.hosted):
                try:
                    self._poll(_FOREVER)
                except Exception:
                    # Whatever it is must not end the only thread that may be left to serve.
                    logger.exception("the sockets could not be polled")
        finally:
            self._service_leads = False
            self._give_up_leadership()
            self._waiting.discard(me)

    def _look_after_host(self) -> None:
        turns = self._turns
        self._bell.acquire(timeout=_HOST_PATIENCE_S)
        if turns == self._turns and self.hosted and self._poller.poll(0):
            # The loop has had time and did not come: user code holds it up.
            self.pump()

    # --- ending --------------------------------------------------------------------------------------------------

    def abandon(self) -> ReentrantLock:
        """In a child that was forked: watch nothing any more, and never wake the parent. Returns the lock from now on; who held the one
        before is not here."""
        self._closed = True
        self.asleep = self.hosted = self._service_leads = self._dozing = False
        # Who wants to wake it finds that somebody has.
        self._woken = True
        self.lock = make_lock()
        # Before connections are closed: taken off the set, they would be taken off the parent's.
        self.handlers.clear()
        self.dirty.clear()
        self.behind.clear()
        self._timers.clear()
        with contextlib.suppress(OSError):
            # They may be closed already, by a program that closes all that it has.
            self._epoll.close()
            os.close(self._wake_fd)
        return self.lock

    def close(self) -> None:
        """Stop the service thread and close the descriptors. No thread may wait any more."""
        self._closed = True
        self.wake()
        self._ring()
        if self._service.is_alive() and get_ident() != self._service_ident:
            self._service.join()
        # A thread that still polls leaves when it sees that what it waited for is over; descriptors go after that.
        mine = self._leader == get_ident()
        if not mine and not self._leadership.acquire(timeout=_CLOSE_PATIENCE_S):
            self.wake()
        # The buffer goes with its last view: the traceback of a peer's error may hold one.
        self._epoll.close()
        # A handle that dies later must not write on a descriptor that is somebody else's by then.
        self._woken = True
        os.close(self._wake_fd)
        self.handlers.clear()


def decoder_of(union: Any) -> Any:
    """A decoder for batches (lists) of the messages of one conversation."""
    return msgspec.msgpack.Decoder(list[union])
