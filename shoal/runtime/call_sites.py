"""Where in the program objects were made, if that is recorded (`record_call_sites`).

What records it stands in for the parts that make objects, so that nothing is asked on the way while it is off.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from shoal.core.references import Entry, ObjectTable
from shoal.ids import FIRST_RETURN
from shoal.runtime.refs import ObjectRef
from shoal.runtime.submitting import Submissions

if TYPE_CHECKING:
    from shoal.core.calls import ActorCalls
    from shoal.core.lanes import SchedulingClass
    from shoal.core.tasks import Function

_PACKAGE: Final = str(Path(__file__).parents[1]) + "/"


def call_site() -> str:
    """The line of the program, outside of this package, that the calling thread is at."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


class SitedObjects(ObjectTable):
    """An object table whose entries know where they come from. Those of items of a generator name where that was called; borrowed ones
    know since when they are here."""

    def own(self, object_id: bytes, local: int = 1) -> Entry:
        entry = super().own(object_id, local)
        if local:
            entry.site = call_site(), time_ns()
        else:
            # Not made by the thread that enters it: an item that has come.
            first = self.entries.get(object_id[:13] + FIRST_RETURN)
            entry.site = getattr(first, "site", ("", 0))[0], time_ns()
        return entry

    def borrow(self, ref: tuple[bytes, str]) -> Entry:
        entry = super().borrow(ref)
        if not hasattr(entry, "site"):
            entry.site = "", time_ns()
        return entry


class SitedSubmissions(Submissions):
    """Submits tasks whose results know where that was. (All but the common case enter them in the table, which knows.)"""

    def submit(
        self,
        function: Function,
        queue: SchedulingClass,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
    ) -> ObjectRef[Any]:
        ref = super().submit(function, queue, args, kwargs, retries)
        ref._entry.site = call_site(), time_ns()
        return ref

    def submit_call(
        self,
        link: ActorCalls,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
        handle: Entry | None,
    ) -> ObjectRef[Any]:
        ref = super().submit_call(link, method, args, kwargs, retries, handle)
        ref._entry.site = call_site(), time_ns()
        return ref
