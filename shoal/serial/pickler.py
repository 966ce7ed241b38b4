"""The pickler: cloudpickle's, with references noted, large buffers kept out, and almost nothing to set up.

Owns one serialization: from an object to chunks of a stream and the buffers between them. Guarantees that a pickler
is used by one serialization at a time (they are taken from a stock and given back, so a user's `__reduce__` may
serialize something itself) and that a failed one is never used again.

Why this is fast: making a pickler costs 0.6 µs and emptying a used one 0.1 µs; the C pickler hands its output to
anything with a `write`, here `list.append`, so a stream is never copied; and every type that has a reducer of ours is
found with one look into a dict, before cloudpickle is asked anything.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cloudpickle

from shoal.serial.arrays import OUT_OF_BAND_MIN_BYTES, learn_numpy
from shoal.serial.hooks import Hooks, IdlePickler, Reduced
from shoal.serial.record import Serialized

PROTOCOL = 5

# Bytes objects from 64 KiB on reach `write` as they are, without a copy, in a chunk of their own. The chunk before
# ends with the opcode that announces them and their length. Putting other opcodes there, which say "call bytes with
# the next buffer", turns them into buffers: on their way to the store they are then copied once instead of twice, and
# so are, on their way back, from an aligned place. (opcode, size of its length field) -> what replaces both
_LARGE_MIN_BYTES = 64 * 1024
_TAKE_BYTES = b"cbuiltins\nbytes\n" + pickle.NEXT_BUFFER + pickle.TUPLE1 + pickle.REDUCE
_TAKE_BYTEARRAY = b"cbuiltins\nbytearray\n" + pickle.NEXT_BUFFER + pickle.TUPLE1 + pickle.REDUCE

# A pickler that has seen many objects keeps a large memo table, which costs time to clear ever after.
_REUSE_MAX_STREAM_BYTES = 4096

# Functions and classes known to go by name. They are attributes of modules, which keep them alive anyway.
_MAX_NAMES = 4096

_reducers_of_cloudpickle: dict[type, Callable[[Any], Reduced]] = (
    cloudpickle.Pickler.dispatch_table.maps[0]
)
_reduce_function_or_class = cloudpickle.Pickler.reducer_override
# What `cloudpickle.register_pickle_by_value` has collected; its public accessor makes a copy each time.
_modules_by_value: set[str] = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES


class _Sink:
    """What the C pickler asks of a file."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self.write = write


def _collector(chunks: list[Any]) -> Callable[[pickle.PickleBuffer], bool]:
    """Decides which buffers stay out of the stream, and puts those among its chunks, in order."""

    def collect(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: pickle refuses it in its own words
        if raw.nbytes < OUT_OF_BAND_MIN_BYTES:
            return True
        chunks.append(raw)
        return False

    return collect


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """A pickler for one value after another."""

    # The live dict, instead of cloudpickle's chain of two: a miss in the chain costs a microsecond and every instance
    # of a user's class misses. cloudpickle's half is looked up in `reducer_override`.
    dispatch_table = copyreg.dispatch_table
    # cloudpickle's version of `dump` only rewords a RecursionError, which we explain ourselves.
    dump = pickle.Pickler.dump

    def __init__(self, hooks: Hooks, *, out_of_band: bool = True) -> None:
        self.hooks = hooks
        self.by_type = hooks.by_type
        self.refs_by_type = hooks.refs_by_type
        self.refs: dict[Any, None] = {}
        self.chunks: list[Any] = []
        # cloudpickle's attributes, which its __init__ would set
        self.globals_ref: dict[int, dict[str, Any]] = {}
        self.proto = PROTOCOL
        # not super(): cloudpickle's __init__ calls no more than this
        pickle.Pickler.__init__(
            self,
            _Sink(self.chunks.append),
            PROTOCOL,
            buffer_callback=_collector(self.chunks) if out_of_band else None,
        )

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle `obj`; called for everything but the types that pickle writes itself."""
        cls = type(obj)
        reduce = self.by_type.get(cls)
        if reduce is not None:
            return reduce(obj)
        reduce = self.refs_by_type.get(cls)
        if reduce is not None:
            self.refs[obj] = None
            return reduce(obj)
        if cls is type or cls is FunctionType:
            return self._reduce_code(obj)
        reduce = _reducers_of_cloudpickle.get(cls)
        if reduce is not None:
            return reduce(obj)
        hooks = self.hooks
        if issubclass(cls, hooks.bases):
            reduce = hooks.inherited_ref_reducer(cls)
            if reduce is None:  # a class of some metaclass
                return self._reduce_code(obj)
            self.refs[obj] = None
            return reduce(obj)
        if not hooks.numpy_known:
            learn_numpy(hooks)
            if hooks.numpy_known:
                return self.reducer_override(obj)
        return NotImplemented

    def _reduce_code(self, obj: Any) -> Any:
        """A function or class: cloudpickle's reduction, or NotImplemented for one that goes by its name."""
        by_name = self.hooks.by_name
        if id(obj) in by_name and not _modules_by_value:
            return NotImplemented
        reduced = _reduce_function_or_class(self, obj)
        if reduced is NotImplemented:
            if len(by_name) >= _MAX_NAMES:
                by_name.clear()
            by_name[id(obj)] = obj
        return reduced

    def abandon(self) -> None:
        """Let go of everything: the memo would keep the user's objects alive until the next collection of cycles."""
        self.clear_memo()
        self.chunks.clear()
        self.refs.clear()


def _prepared(hooks: Hooks) -> IdlePickler:
    pickler = ValuePickler(hooks)
    return pickler.dump, pickler.clear_memo, pickler.chunks, pickler.refs, pickler.globals_ref


def pickle_value(value: Any, hooks: Hooks, *, retry: bool = True) -> Serialized:
    """Serialize `value`; whatever pickling raises comes through as it is."""
    idle = hooks.idle_picklers
    try:
        prepared = idle.pop()
    except IndexError:
        prepared = _prepared(hooks)
    dump, clear_memo, chunks, refs, shared_globals = prepared
    try:
        dump(value)
    except BaseException as error:
        clear_memo()
        chunks.clear()
        refs.clear()
        if not (retry and isinstance(error, pickle.PicklingError) and hooks.by_name):
            raise
    else:
        clear_memo()
        data = chunks.pop()
        if not chunks and not refs:
            result = Serialized(data)
        else:
            chunks.append(data)
            data, buffers = _join(chunks)
            result = Serialized(data, buffers, list(refs))
            chunks.clear()
            refs.clear()
        if len(data) <= _REUSE_MAX_STREAM_BYTES:
            # A namespace is shared by the functions of one value only; see cloudpickle's `globals_ref`.
            if shared_globals:
                shared_globals.clear()
            idle.append(prepared)
        return result
    # A module may hold something else now under a name that was good before: look all of them up again.
    hooks.by_name.clear()
    return pickle_value(value, hooks, retry=False)


def pickle_in_band(value: Any, hooks: Hooks) -> bytes:
    """Serialize `value` into one stream with all buffers inside; references are rebuilt from it, but not reported."""
    pickler = ValuePickler(hooks, out_of_band=False)
    try:
        pickler.dump(value)
        return b"".join(pickler.chunks)
    finally:
        pickler.abandon()


def _join(chunks: list[Any]) -> tuple[bytes, list[memoryview]]:
    """The stream whole, and the buffers, from what the pickler wrote in order."""
    stream: list[Any] = []
    buffers: list[memoryview] = []
    for chunk in chunks:
        if type(chunk) is memoryview:
            buffers.append(chunk)
            continue
        if stream and type(chunk) in _LARGE_TYPES and len(chunk) >= _LARGE_MIN_BYTES:
            head = _announce_buffer(stream[-1], chunk)
            if head is not None:
                stream[-1] = head
                buffers.append(memoryview(chunk))
                continue
        stream.append(chunk)
    if len(stream) == 1 and type(stream[0]) is bytes:
        return stream[0], buffers
    return b"".join(stream), buffers


_LARGE_TYPES = (bytes, bytearray)


def _announce_buffer(before: Any, chunk: bytes | bytearray) -> bytes | None:
    """`before` with its last opcode, if that announces `chunk`, replaced by one that takes a buffer instead."""
    if type(before) is not bytes:
        return None
    size = len(chunk)
    if type(chunk) is bytearray:
        header, take = pickle.BYTEARRAY8 + size.to_bytes(8, "little"), _TAKE_BYTEARRAY
    elif size > 0xFFFFFFFF:
        header, take = pickle.BINBYTES8 + size.to_bytes(8, "little"), _TAKE_BYTES
    else:
        header, take = pickle.BINBYTES + size.to_bytes(4, "little"), _TAKE_BYTES
    return before[: -len(header)] + take if before.endswith(header) else None
