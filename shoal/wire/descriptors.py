"""How many files a process may have open: connections to many others need more than the usual 1,024.

The *soft* limit is what the system holds a process to; it may raise that by itself up to the *hard* one. The usual soft limit is
that low for the sake of programs that use `select`, or close every possible descriptor one by one; so processes that run
user code raise it only as far as sessions need.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import Final

MOST_WITH_USER_CODE: Final = 65_536

_NO_LIMIT: Final = 1 << 20

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_shortage(error: OSError) -> bool:
    """Whether a socket was not to be had because too many are open, or memory is short: it says nothing about the other side, and
    passes."""
    return error.errno in _SHORTAGES


def raise_descriptor_limit(most: int | None = None) -> int:
    """Raise the soft limit to the hard one, but not above `most`; never lowers it. Returns what may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard
    if most is not None and (hard == resource.RLIM_INFINITY or hard > most):
        wanted = most
    if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > soft):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _NO_LIMIT if soft == resource.RLIM_INFINITY else soft
