"""Interrupting the main thread without breaking shoal's state.

Ctrl-C at a driver, and `cancel` of a task that runs, raise `KeyboardInterrupt` in the main thread; Python may do so between any two
instructions, also while the runtime's tables are half changed. So the signal handler looks at the stack first: if the innermost
code that counts is the user's, it raises; if it is shoal's own, it only makes a note, which is turned into the exception
at a safe place: between two rounds of the reactor, after some submissions, or shortly after, when the signal is sent again.

Looking at the stack when a signal comes costs nothing on any path before.
"""

from __future__ import annotations

import _thread
import os
import signal
import sysconfig
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB: Final = sysconfig.get_paths()["stdlib"] + os.sep
_SITE: Final = os.sep + "site-packages" + os.sep

_AGAIN_S: Final = 0.005


def in_engine(frame: FrameType | None) -> bool:
    """Whether shoal's own code is running, called by whomever; the standard library counts as its caller."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_PACKAGE):
            return True
        if not (filename.startswith((_STDLIB, "<frozen")) and _SITE not in filename):
            return False
        frame = frame.f_back
    return False


class Interrupts:
    """Handles SIGINT in the main thread. `wanted` says whether a signal means anything now."""

    def __init__(self, wake: Callable[[], None], wanted: Callable[[], bool] | None = None) -> None:
        self._wake = wake
        self._wanted = wanted
        self._pid = os.getpid()
        self._noted = False
        self._requested = False
        self._sending = False
        self._previous: Any = None
        self._installed = False
        self._over = False

    def install(self) -> bool:
        """Take SIGINT over, if this is the main thread and the program has not changed it."""
        if threading.current_thread() is not threading.main_thread():
            return False
        previous = signal.getsignal(signal.SIGINT)
        owner = getattr(previous, "__self__", None)
        if isinstance(owner, Interrupts) and (owner._over or owner._pid != self._pid):
            # Another thread ended that session, and could not give the signal back; or it is that of the process that forked this one.
            previous = owner._previous
        if previous is not signal.default_int_handler:
            return False
        self._previous = previous
        signal.signal(signal.SIGINT, self._on_signal)
        self._installed = True
        return True

    def uninstall(self) -> None:
        """Give SIGINT back, if it is still ours and this is the main thread; in another one, do as if. Raises what was noted
        and could not be raised before: call it last."""
        if not self._installed:
            return
        self._over = True
        if threading.current_thread() is not threading.main_thread():
            return
        self._installed = False
        if signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._previous)
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt

    def request(self) -> None:
        """Interrupt the main thread, from any thread. The signal is sent until the handler has run: one that comes just before
        a system call that waits does not end it, since Python looks for signals before and after."""
        main = threading.main_thread().ident
        assert main is not None
        self._requested = True
        signal.pthread_kill(main, signal.SIGINT)
        self._keep_sending(main)

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        asked = self._noted
        if self._requested:
            # Not cleared unless it was seen: another request may just be made, whose signal comes.
            self._requested = False
            asked = True
        ours = not self._over and os.getpid() == self._pid
        if ours and self._wanted is not None and not (asked and self._wanted()):
            # Not asked: sent once more, when the one before had just been served. Whoever is interrupted may be cleaning up by now.
            self._noted = False
            return
        if ours and in_engine(frame):
            self._noted = True
            self._wake()
            # A waiting thread raises at once. Should no safe place come, the signal comes again. Not by `threading`, whose
            # own locks the interrupted code may hold.
            self._keep_sending(threading.get_ident())
            return
        self._noted = False
        raise KeyboardInterrupt

    def _keep_sending(self, main: int) -> None:
        if not self._sending:
            self._sending = True
            _thread.start_new_thread(self._send_again, (main,))

    def _send_again(self, main: int) -> None:
        while True:
            time.sleep(_AGAIN_S)
            # In this order, as the handler notes first and looks at `_sending` then: one of the two sees the other.
            self._sending = False
            if not (self._noted or self._requested):
                return
            self._sending = True
            signal.pthread_kill(main, signal.SIGINT)

    def check(self) -> None:
        """A safe place: raise what was noted. Only the main thread raises."""
        if self._noted and threading.current_thread() is threading.main_thread():
            self._noted = False
            if self._wanted is None or self._wanted():
                raise KeyboardInterrupt
