"""What to do about an object that cannot be sent, by its type.

Owns the advice only; `shoal.serial.explain` puts it beside the path and the reason. Types are matched by name, so
that nothing is imported for the sake of an error's text.
"""

from __future__ import annotations

import re
from pickle import PicklingError

# How pickle words it, in all versions since 3.11.
_SENT_BY_NAME = re.compile(
    "not the same object as|not found as|lookup .* failed|cannot get .* from"
)

_LOCK = (
    "a lock works inside one process only. Create it where it is used (in the task, or in the actor's __init__), or "
    "leave it out in the object's __getstate__ and make a new one in __setstate__. To guard state between tasks, put "
    "that state into an actor."
)
_HANDLE = (
    "it is a handle of this process. Send the path or address instead and open it inside the task or in the actor's "
    "__init__."
)
_FRAME = (
    "its running frame cannot be copied. Send what it was made from and start it on the other side, or send its items "
    "as a list."
)
_LOOP = (
    "it belongs to the event loop of this process. Send the values it works on and create it on the other side; "
    "an async actor has a loop of its own."
)
_THREAD = "it belongs to a thread of this process. Create it on the other side."
_WEAK = (
    "a weak reference means an object of this process. Send the object itself, or leave the reference out in "
    "__getstate__."
)
_TRACEBACK = "it holds frames of this process. Send its text, from the traceback module, instead."

_BY_TYPE = {
    "_thread.lock": _LOCK,
    "_thread.RLock": _LOCK,
    "multiprocessing.synchronize.Lock": _LOCK,
    "multiprocessing.synchronize.RLock": _LOCK,
    "multiprocessing.synchronize.Semaphore": _LOCK,
    "_thread._local": (
        "the values of a thread-local exist once a thread. Send the value that this thread sees, or create the "
        "thread-local on the other side."
    ),
    "_thread._localdummy": _THREAD,
    "_thread._ThreadHandle": _THREAD,
    "threading.Thread": _THREAD,
    "concurrent.futures.thread.ThreadPoolExecutor": _THREAD,
    "_queue.SimpleQueue": "a queue works inside one process only. shoal.util.queue.Queue works between processes.",
    "queue.Queue": "a queue works inside one process only. shoal.util.queue.Queue works between processes.",
    "socket.socket": _HANDLE,
    "_socket.socket": _HANDLE,
    "ssl.SSLContext": _HANDLE,
    "ssl.SSLSocket": _HANDLE,
    "sqlite3.Connection": _HANDLE,
    "sqlite3.Cursor": _HANDLE,
    "mmap.mmap": _HANDLE,
    "select.epoll": _HANDLE,
    "subprocess.Popen": "it stands for a child of this process. Start it inside the task or actor.",
    "generator": _FRAME,
    "coroutine": _FRAME,
    "async_generator": _FRAME,
    "frame": _TRACEBACK,
    "traceback": _TRACEBACK,
    "weakref.ReferenceType": _WEAK,
    "weakref": _WEAK,
    "weakref.WeakKeyDictionary": _WEAK,
    "weakref.WeakValueDictionary": _WEAK,
    "_contextvars.Context": "it belongs to this process. Send the values of its variables.",
    "_contextvars.ContextVar": "it belongs to this process. Import it from a module on both sides.",
    "_contextvars.Token": "it belongs to this process. Send the value it stands for.",
}
_BY_MODULE = {
    "_io": _HANDLE,
    "asyncio": _LOOP,
    "_asyncio": _LOOP,
    "uvloop": _LOOP,
    "ctypes": "it points into the memory of this process. Send the bytes it points to.",
    "_ctypes": "it points into the memory of this process. Send the bytes it points to.",
    "tempfile": _HANDLE,
}


def type_name(cls: type) -> str:
    """A type as users write it: with its module, except for builtins."""
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def advice_for(obj: object, error: Exception) -> str:
    """What to do about `obj`, whose pickling raised `error`."""
    if isinstance(error, PicklingError) and _SENT_BY_NAME.search(str(error)):
        return (
            "it is sent by name, and its module holds nothing or something else under that name (a decorator, a "
            "reload or a rename does that). Give it a name of its own there, or define it in __main__."
        )
    for cls in type(obj).__mro__:
        name = type_name(cls)
        known = _BY_TYPE.get(name) or _BY_MODULE.get(cls.__module__.partition(".")[0])
        if known is not None:
            return known
    return (
        "leave it out (in __getstate__, or by not capturing it), create it on the other side, or teach shoal to send "
        f"such objects: shoal.util.register_serializer({type(obj).__name__}, serializer=..., deserializer=...)."
    )
