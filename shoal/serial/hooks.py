"""How values of particular types become bytes: what the runtime and the user have registered.

Owns the tables that the pickler consults, and the pool of picklers built on them. The runtime registers what counts
as a reference, so that nothing here imports the API; users register serializers for types that cannot pickle
themselves.

Order, first match wins: references (the type or a base of it), the user's serializers (the exact type), numpy
arrays and scalars, what cloudpickle knows, `copyreg`, and the object's own `__reduce_ex__`.

`HOOKS` is the process's set. Tests and tools may make others.
"""

from __future__ import annotations

import copyreg
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# What the C pickler writes without consulting anyone.
_NATIVE_TYPES = frozenset(
    (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset)
)

Reduced = str | tuple[Any, ...]
"""What `__reduce__` may return."""

Reducer = Callable[[Any], Reduced]

IdlePickler = tuple[
    Callable[[Any], None], Callable[[], None], list[Any], dict[Any, None], dict[int, dict[str, Any]]
]
"""A pickler ready for use, as its parts: `dump`, `clear_memo`, chunks, references, shared globals."""

_MAX_IDLE = 32
"""Picklers kept ready: as many as threads that serialize at the same moment, or reductions that do so in each other."""

# Extension codes shorten a global to five bytes and spare the loader a lookup by name (0.9 of 1.4 µs for a small
# array). The registry is shared with every library of the process; a base this odd is nobody else's. The number of
# a function must be the same in every process and in every release that may share a cluster.
_EXTENSION_BASE = 0x5E0A1000


class Hooks:
    """One set of reducers. Registration is rare and may happen in any thread; look-ups take no lock."""

    __slots__ = (
        "bases",
        "by_name",
        "by_type",
        "idle_picklers",
        "numpy_known",
        "refs_by_type",
        "serializers",
    )

    def __init__(self) -> None:
        self.refs_by_type: dict[type, Reducer] = {}
        # Reducers of exact types: our own for numpy, and the user's over them.
        self.by_type: dict[type, Reducer] = {}
        self.serializers: dict[type, Reducer | None] = {}
        # `type` stands for classes with a metaclass; the reference types join it. One `issubclass` asks for all.
        self.bases: tuple[type, ...] = (type,)
        self.numpy_known = False
        self.idle_picklers: deque[IdlePickler] = deque(maxlen=_MAX_IDLE)
        # Functions and classes that are known to go by name, by their id: cloudpickle looks each up again, every time.
        self.by_name: dict[int, Any] = {}

    def register_ref_type(self, cls: type[T], reduce: Callable[[T], Reduced]) -> None:
        """Treat instances of `cls` and of its subclasses as references.

        Whenever one is met, it is noted in `Serialized.refs`, and `reduce(ref)` says how to rebuild it, as `__reduce__`
        would. `cls` must be hashable, equal for the same object: that is how each is listed once.
        """
        self.refs_by_type[cls] = reduce
        self.bases = (*self.bases, cls)

    def register_serializer(
        self,
        cls: type[T],
        *,
        serializer: Callable[[T], Any],
        deserializer: Callable[[Any], T],
    ) -> None:
        """Send instances of exactly `cls` as `serializer(obj)` and rebuild them with `deserializer`.

        The deserializer travels with the value, so the receiver needs no registration; one that can be imported there
        costs a few bytes, one defined in `__main__` its code.
        """
        if not isinstance(cls, type):
            raise TypeError(f"register_serializer needs a class, not {cls!r}.")
        if cls in _NATIVE_TYPES:
            raise TypeError(
                f"register_serializer cannot change how {cls.__name__} is sent: pickle writes that type itself and asks "
                "nobody. Wrap such values in a class of your own and register that."
            )

        def reduce(obj: T) -> tuple[Any, ...]:
            return deserializer, (serializer(obj),)

        self.serializers.setdefault(cls, self.by_type.get(cls))
        self.by_type[cls] = reduce

    def deregister_serializer(self, cls: type) -> None:
        """Forget the serializer of `cls`; without effect where there is none."""
        before = self.serializers.pop(cls, _NEVER)
        if before is _NEVER:
            return
        if before is None:
            del self.by_type[cls]
        else:
            self.by_type[cls] = before

    def add_reducers(self, reducers: dict[type, Reducer]) -> None:
        """Add reducers of our own; a serializer that the user registered for a type stays in force."""
        for cls, reduce in reducers.items():
            if cls in self.serializers:
                self.serializers[cls] = reduce
            else:
                self.by_type[cls] = reduce

    def inherited_ref_reducer(self, cls: type) -> Reducer | None:
        """The reducer of the nearest reference type that `cls` inherits from."""
        for base in cls.__mro__:
            reduce = self.refs_by_type.get(base)
            if reduce is not None:
                self.refs_by_type[cls] = reduce
                return reduce
        return None


def _never(_: Any) -> Reduced:
    raise AssertionError


_NEVER: Reducer = _never

HOOKS = Hooks()
register_ref_type = HOOKS.register_ref_type
register_serializer = HOOKS.register_serializer
deregister_serializer = HOOKS.deregister_serializer


def register_rebuilder(function: Callable[..., Any], number: int) -> None:
    """Declare a module-level function of shoal that reducers name, under a number that is its own for ever.

    Streams then hold five bytes instead of its name, and a process that loads them must have registered it, which
    importing the module that defines it does. Numbers 0-15 belong to `shoal.serial`; the limit is 4095.
    """
    if not 0 <= number <= 4095:
        raise ValueError(f"The number of a rebuilder is within 0..4095, not {number}.")
    copyreg.add_extension(function.__module__, function.__qualname__, _EXTENSION_BASE + number)
