"""Exceptions as values that always arrive.

Owns the bytes in which an exception travels. Guarantees that `dump_exception` succeeds whatever the exception is, and
that the receiver gets, of these, the first that survives a round trip here:

1. the exception as it pickles itself;
2. the exception rebuilt without its `__init__`, from `args` and attributes (an `__init__` whose parameters are not
   `args` is the usual reason why exceptions cannot be unpickled, or come back with their message wrapped twice);
3. the same with parts that cannot be sent replaced by their `repr` (in `args`) or left out (attributes), and a note
   that says so: `except TheirError` still works;
4. an `ExceptionStandIn` with the type's name, the message and the text of the traceback.

Each exception inside another one (a cause, a context, a member of a group, an attribute) is treated alike on its
own, so that one bad member does not spoil the group. Notes and the chains of `__cause__` and `__context__` survive;
frames do not.

Leaves to the runtime the traceback of the whole (`TaskError.traceback_str`). References to objects inside an
exception are rebuilt, but not reported: the sender does not keep them alive on behalf of the receiver.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import msgspec

from shoal.errors import DeserializationError, ShoalError
from shoal.serial.advice import type_name
from shoal.serial.hooks import HOOKS, Hooks, register_rebuilder
from shoal.serial.pickler import PROTOCOL, ValuePickler
from shoal.serial.record import Bytes
from shoal.serial.values import deserialize

_MAX_LINKS = 64
"""Causes and contexts sent with one exception; what hangs on longer chains is dropped."""
_MAX_REPR = 200


class ExceptionStandIn(ShoalError):  # noqa: N818 - it says what it is; the error is another
    """Stands for an exception that could not be sent or rebuilt.

    Attributes:
        type_name: Its type, with the module.
        message: Its text.
        traceback_str: Its traceback where it was raised; empty if that was not sent.
        reason: Why it could not come itself.
    """

    def __init__(self, type_name: str, message: str, traceback_str: str, reason: str) -> None:
        super().__init__(type_name, message, traceback_str, reason)
        self.type_name = type_name
        self.message = message
        self.traceback_str = traceback_str
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.type_name}: {self.message}\n"
            f"(This stands for the exception, which could not be sent itself: {self.reason}. Give it a __reduce__ "
            "that works, and define it where both sides can import it.)"
        )


class _Sent(msgspec.Struct, array_like=True):
    """An exception on its way; user data is pickled inside `pickled`, `cause` and `context` only."""

    pickled: bytes | None
    type_name: str
    message: str
    traceback_str: str
    reason: str
    notes: list[str]
    suppress_context: bool
    cause: bytes | None
    context: bytes | None
    context_is_cause: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sent).decode


def dump_exception(error: BaseException, *, hooks: Hooks = HOOKS) -> bytes:
    """`error` as a pickle stream, for `load_exception` or `deserialize`. Never fails."""
    return pickle.dumps(_Carrier(_Dump(hooks).dump(error)), PROTOCOL)


def load_exception(data: Bytes) -> BaseException:
    """The exception in `data`, or an `ExceptionStandIn` if its type cannot be rebuilt in this process.

    Raises:
        DeserializationError: `data` is not what `dump_exception` made.
    """
    loaded = deserialize(data, subject="an exception")
    if not isinstance(loaded, BaseException):
        raise DeserializationError(
            f"Bytes that should hold an exception hold a {type_name(type(loaded))}: sender and receiver run "
            "different versions of shoal, or took one message for another."
        )
    return loaded


class _Carrier:
    """Pickles as a call of `rebuild_exception`."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_exception, (self._sent,)


def rebuild_exception(data: bytes) -> BaseException:
    """The exception in the bytes of a `_Sent`."""
    sent = _decode(data)
    loaded, reason = None, sent.reason
    if sent.pickled is not None:
        loaded, reason = _load(sent.pickled)
    if loaded is None:
        loaded = ExceptionStandIn(sent.type_name, sent.message, sent.traceback_str, reason)
        for note in sent.notes:
            loaded.add_note(note)
    cause = rebuild_exception(sent.cause) if sent.cause is not None else None
    context = rebuild_exception(sent.context) if sent.context is not None else None
    if cause is not None:
        loaded.__cause__ = cause
    if context is not None or sent.context_is_cause:
        loaded.__context__ = cause if sent.context_is_cause else context
    loaded.__suppress_context__ = sent.suppress_context
    return loaded


def rebuild_bare(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    """An exception made without its `__init__`."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


register_rebuilder(rebuild_exception, 2)
register_rebuilder(rebuild_bare, 3)


class _Dump:
    """One `dump_exception`, with what it has met so far."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._links_left = _MAX_LINKS
        self._active: list[BaseException] = []  # by identity; `in` would ask the user's __eq__

    def dump(self, error: BaseException) -> bytes:
        if any(active is error for active in self._active):
            return _encode(_stand_in(error, "it refers back to itself", with_traceback=False))
        self._active.append(error)
        try:
            sent = self._sent(error)
            sent.cause = self._link(error.__cause__)
            if error.__cause__ is not None and error.__context__ is error.__cause__:
                sent.context_is_cause = True
            else:
                sent.context = self._link(error.__context__)
            sent.suppress_context = error.__suppress_context__
            return _encode(sent)
        finally:
            self._active.pop()

    def pickle(self, reduced: Any, root: BaseException | None = None) -> bytes:
        """A stream in which every exception but `root` is dumped on its own."""
        pickler = _ExceptionPickler(self, self._hooks, root)
        try:
            pickler.dump(reduced)
            return b"".join(pickler.chunks)
        finally:
            pickler.abandon()

    def _link(self, error: BaseException | None) -> bytes | None:
        if error is None or self._links_left <= 0 or any(a is error for a in self._active):
            return None
        self._links_left -= 1
        return self.dump(error)

    def _sent(self, error: BaseException) -> _Sent:
        """`error` without its links."""
        try:
            pickled = self.pickle(error, root=error)
        except Exception as failure:  # noqa: BLE001 - user code
            first_reason = _text(failure)
        else:
            loaded, first_reason = _load(pickled)
            if loaded is not None and _same(error, loaded):
                return _by_itself(error, pickled)
        pickled_bare = self._bare(error)
        if pickled_bare is not None:
            return _by_itself(error, pickled_bare)
        return _stand_in(error, first_reason or "it came back as something else")

    def _bare(self, error: BaseException) -> bytes | None:
        """A stream that rebuilds `error` without its `__init__`, whole or in part; None if neither works."""
        pickled = self._checked(_Bare(type(error), error.args, vars(error)))
        if pickled is not None:
            return pickled
        return self._checked(_Bare(type(error), *self._reduced_to_sendable(error)))

    def _checked(self, bare: _Bare) -> bytes | None:
        """A stream that rebuilds `bare` as its own type, or None."""
        try:
            pickled = self.pickle(bare)
        except Exception:  # noqa: BLE001 - user code; whoever asked tries something simpler
            return None
        loaded, _ = _load(pickled)
        return pickled if type(loaded) is bare.cls else None

    def _reduced_to_sendable(self, error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and attributes of `error` with what cannot be sent replaced or left out, and a note about it."""
        args = tuple(arg if self._sendable(arg) else _repr(arg) for arg in error.args)
        attributes = {k: v for k, v in vars(error).items() if self._sendable(v)}
        missing = [name for name in vars(error) if name not in attributes]
        if missing:
            notes = [*_notes(error), f"Not sent with it: {', '.join(map(str, missing))}."]
            attributes["__notes__"] = notes
        return args, attributes

    def _sendable(self, value: Any) -> bool:
        try:
            pickle.loads(self.pickle(value))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - user code; the answer is no
            return False
        return True


class _Bare:
    """Pickles as a call of `rebuild_bare`."""

    def __init__(
        self, cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
    ) -> None:
        self.cls = cls
        self._parts = (cls, args, attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_bare, self._parts


class _ExceptionPickler(ValuePickler):
    """Pickles one exception, and hands those inside it to the dump."""

    def __init__(self, dump: _Dump, hooks: Hooks, root: BaseException | None) -> None:
        super().__init__(hooks, out_of_band=False)
        self._dump = dump
        self._root = root

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), BaseException) and obj is not self._root:
            return rebuild_exception, (self._dump.dump(obj),)
        return super().reducer_override(obj)


def _load(pickled: bytes) -> tuple[BaseException | None, str]:
    """The exception in a stream, or None and the reason."""
    try:
        loaded = pickle.loads(pickled)  # noqa: S301 - bytes of this session's peers
    except Exception as failure:  # noqa: BLE001 - user code, or a module that is not there
        return None, _text(failure)
    if not isinstance(loaded, BaseException):
        return None, f"it came back as a {type_name(type(loaded))}"
    return loaded, ""


def _same(error: BaseException, loaded: BaseException) -> bool:
    """Whether a round trip kept what users see: the type and the text."""
    if isinstance(error, ShoalError):
        # The combined type of a TaskError follows its cause, which may have become a stand-in.
        return isinstance(loaded, ShoalError)
    return type(loaded) is type(error) and _message(loaded) == _message(error)


def _by_itself(error: BaseException, pickled: bytes) -> _Sent:
    # The traceback is for a receiver that cannot import the type, and takes a while to format.
    foreign = type(error).__module__ != "builtins" and not isinstance(error, ShoalError)
    return _described(error, pickled, "", with_traceback=foreign)


def _stand_in(error: BaseException, reason: str, *, with_traceback: bool = True) -> _Sent:
    if isinstance(error, ExceptionStandIn):
        return _Sent(
            None, error.type_name, error.message, error.traceback_str, error.reason,
            _notes(error), False, None, None, False,
        )  # fmt: skip
    return _described(error, None, reason, with_traceback=with_traceback)


def _described(
    error: BaseException, pickled: bytes | None, reason: str, *, with_traceback: bool
) -> _Sent:
    return _Sent(
        pickled=pickled,
        type_name=_clean(type_name(type(error))),
        message=_message(error),
        traceback_str=_traceback(error) if with_traceback else "",
        reason=_clean(reason),
        notes=_notes(error),
        suppress_context=False,
        cause=None,
        context=None,
        context_is_cause=False,
    )


def _traceback(error: BaseException) -> str:
    try:
        return _clean("".join(traceback.format_exception(error, chain=False)))
    except Exception as failure:  # noqa: BLE001 - user code (__str__, __notes__)
        return f"(the traceback could not be formatted: {type(failure).__name__})"


def _message(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except Exception as failure:  # noqa: BLE001 - user code
        return f"(its __str__ raised {type(failure).__name__})"


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)
    return [_clean(str(note)) for note in notes] if isinstance(notes, list | tuple) else []


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - user code
        text = f"<{type_name(type(value))}>"
    return text if len(text) <= _MAX_REPR else text[:_MAX_REPR] + "…"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {_message(error)}"


def _clean(text: str) -> str:
    """Text that can be encoded: messages may hold lone surrogates, from file names for example."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
