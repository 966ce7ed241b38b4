"""Waits that the runtime does not see, and when the CPU of a worker is lent because of them.

A thread that is inside `get` waits, and so its worker lends its CPU (`blocking`). Whoever waits by `await`, by the `result()` of a future,
or for a thread that is inside `get`, waits too, but nobody here knows: the program asks for an object, and what its threads do meanwhile is
its own affair. It may compute, and then the CPU is in use; or it may do nothing until the object is there, and if that can only be made
with this very CPU, for ever.

So it is looked at what the process does. While somebody has asked for an object that is not there (`begin`, `end`), the CPU time of the
process is read every `idle_lend_ms`. If it has hardly used any since the last look, although somebody has waited since before that, it
waits: its CPU is lent. It is taken back when the last object is there that somebody waits for, or when the process is seen to work again,
because one of several has come. For so long, a few looks, more may run than there are CPUs, as after every wait.

Limits: a program that asks over and over whether a future is done, without a pause, uses its CPU and keeps it. One whose work is done by
processes that it started itself seems to wait. A process that gets hardly any CPU because others take it may be mistaken for one that
waits, which costs nothing but accuracy.

Owns: who waits quietly, and whether the CPU is lent for them. All methods are called with the runtime's lock held, but `_look`, which a
timer calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic, process_time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shoal.lock import ReentrantLock

_IDLE: Final = 0.2
"""Whoever uses less of a CPU than this waits,"""

_BUSY: Final = 0.4
"""and whoever has lent it and uses more works again."""

_SLOWER: Final = 2
_SLOWEST_S: Final = 1.0
"""While it is lent and nothing happens, looks become rarer."""


class QuietWaits:
    """See the module's docstring.

    Args:
        look_s: Seconds between two looks; 0 turns it off.
        call_later: Sets a timer.
        is_lender: Whether there is a CPU to be lent.
        lend: Lends it.
        take_back: Takes it back.
        clock: The time, in seconds.
        used: CPU time of the process, in seconds.
    """

    def __init__(
        self,
        lock: ReentrantLock,
        look_s: float,
        call_later: Callable[[float, Callable[[], None]], None],
        *,
        is_lender: Callable[[], bool],
        lend: Callable[[], None],
        take_back: Callable[[], None],
        clock: Callable[[], float] = monotonic,
        used: Callable[[], float] = process_time,
    ) -> None:
        self._lock = lock
        self._look_s = look_s
        self._call_later = call_later
        self._is_lender = is_lender
        self._lend = lend
        self._take_back = take_back
        self._clock = clock
        self._used = used
        self.waits: dict[int, None] = {}
        self._number = 0
        self._lent = False
        # The timer that counts, if any; those before it find that they do not.
        self._timer = 0
        self._armed = False
        # As it was at the last look.
        self._seen_s = self._seen_used_s = 0.0
        self._seen_number = 0
        self._pause_s = look_s

    def begin(self) -> int:
        """Somebody waits for an object from now on; what to call the wait."""
        self._number += 1
        self.waits[self._number] = None
        # (Somebody who begins to wait has done something: if looks have become rare, the next is soon.)
        soon = self._armed and self._pause_s <= self._look_s
        if not soon and self._look_s and self._is_lender():
            self._look_in(self._look_s)
        return self._number

    def end(self, number: int) -> None:
        """The object is there, or nobody waits for it any more."""
        if self.waits.pop(number, 0) is None and self._lent:
            if not self.waits:
                self._give_up()
            elif self._pause_s > self._look_s:
                # Whoever waited for this one may go on: look soon.
                self._look_in(self._look_s)

    def forget(self) -> None:
        """The task is over in which somebody has waited."""
        self.waits.clear()
        if self._lent:
            self._give_up()

    def _give_up(self) -> None:
        self._lent = False
        self._take_back()

    def _look_in(self, pause_s: float) -> None:
        self._armed = True
        self._pause_s = pause_s
        self._timer += 1
        self._seen_s, self._seen_used_s = self._clock(), self._used()
        self._seen_number = self._number
        self._call_later(pause_s, partial(self._look, self._timer))

    def _look(self, timer: int) -> None:
        with self._lock:
            if timer != self._timer:
                return
            self._armed = False
            if not self.waits or not self._is_lender():
                return
            busy = (self._used() - self._seen_used_s) / max(self._clock() - self._seen_s, 1e-9)
            pause_s = self._look_s
            if self._lent and busy > _BUSY:
                self._give_up()
            elif self._lent:
                pause_s = min(self._pause_s * _SLOWER, _SLOWEST_S)
            elif busy < _IDLE and next(iter(self.waits)) <= self._seen_number:
                self._lent = True
                self._lend()
            self._look_in(pause_s)
