"""A child that user code forks: it has a copy of the whole process, and may use nothing of what the two share.

What the child would write goes to the parent's peers, in the middle of what the parent says; what it would take off the epoll set is taken
off the parent's; its copies of sockets and locks keep alive what dies with the parent. So in the child, before any code of the user's runs,
the runtime

- is no longer the process's: every call of the public interface fails at once and says what to do (`current_process`);
- closes its copies of all descriptors, without a word to anybody, and forgets what it was about to do;
- has locks that nobody holds, since the threads that held them are in the parent.

What the program reads of large values that it had before the fork stays mapped. (The store sees to its own: `shoal.store.forking`.)
"""

from __future__ import annotations

import os

from shoal.runtime import current_process


def _in_child() -> None:
    process = current_process.process
    if process is not None:
        current_process.set_forked(process.pid)
        process.abandon()


_installed = False


def install() -> None:
    """See to all forks of this process from now on."""
    global _installed  # noqa: PLW0603 - hooks cannot be removed again, so it is put in once, on first use
    if not _installed:
        _installed = True
        os.register_at_fork(after_in_child=_in_child)
