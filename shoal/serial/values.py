"""Values to bytes and back: the entrance to this package, on the hottest path of the system.

Owns the order of things: the shortest way for simple values, the pickler for all others, and on failure the search
for the culprit. Guarantees that whatever cannot be sent raises `UnserializableError` that names the part at fault,
and whatever cannot be rebuilt `DeserializationError`, each with the original as `__cause__`; shoal's own errors and
`MemoryError` pass unchanged. Leaves to the runtime where bytes go and who counts the references found.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.errors import DeserializationError, ShoalError, UnserializableError
from shoal.serial.hooks import HOOKS, Hooks
from shoal.serial.pickler import PROTOCOL, pickle_in_band, pickle_value
from shoal.serial.record import Bytes, Serialized

_dumps = pickle.dumps
_loads = pickle.loads

# Plain pickle suffices for these: nothing inside them can be a reference, a function or a buffer.
_SCALARS = frozenset((int, float, bool, complex))
_NONE = Serialized(_dumps(None, PROTOCOL))
# Text and bytes up to here take the same way; longer ones profit from the pickler's way with large chunks.
_SHORT = 32 * 1024


def serialize(value: Any, *, hooks: Hooks = HOOKS, subject: str = "the value") -> Serialized:
    """`value` as bytes, with the buffers and references in it.

    Args:
        value: Anything that pickle or cloudpickle can handle, or that a serializer was registered for.
        hooks: The registered types.
        subject: What the value is to the user ("the result of f()"), for the error.

    Raises:
        UnserializableError: Some part of the value cannot be sent; the message says which.
    """
    if value is None:
        return _NONE
    cls = type(value)
    if cls in _SCALARS or ((cls is str or cls is bytes) and len(value) <= _SHORT):
        return Serialized(_dumps(value, PROTOCOL))
    try:
        return pickle_value(value, hooks)
    except Exception as error:
        if _passes(error):
            raise
        from shoal.serial.explain import unserializable

        raise unserializable(subject, value, error, hooks) from error


# The stream of arguments: nothing for none, a tuple for positional ones alone, else a list of both.


def serialize_args(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    hooks: Hooks = HOOKS,
    target: Callable[..., Any] | str = "",
    parameters: Sequence[str] = (),
) -> Serialized:
    """The arguments of a call as bytes; no arguments are no bytes at all.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        hooks: The registered types.
        target: What is called, for the error: the function or method, or its name.
        parameters: Names of the positional parameters, where `target` alone does not tell.

    Raises:
        UnserializableError: An argument cannot be sent; the message says which, and which part of it.
    """
    try:
        if not kwargs:
            if not args:
                return _NO_ARGUMENTS
            if len(args) == 1:
                value = args[0]
                cls = type(value)
                if cls in _SCALARS or ((cls is str or cls is bytes) and len(value) <= _SHORT):
                    return Serialized(_dumps(args, PROTOCOL))
            return pickle_value(args, hooks)
        return pickle_value([args, kwargs], hooks)
    except Exception as error:
        if _passes(error):
            raise
        from shoal.serial.explain import unserializable_argument

        raise unserializable_argument(args, kwargs, error, hooks, target, parameters) from error


_NO_ARGUMENTS = Serialized(b"")


def deserialize(
    data: Bytes,
    buffers: Sequence[Bytes] = (),
    *,
    subject: str = "a value",
    side: str = "",
) -> Any:
    """The value in a pickle stream and its buffers.

    Arrays become views of `buffers`: of shared memory without a copy, and read-only.

    Args:
        data: The stream.
        buffers: Its out-of-band buffers, in order; they live as long as the views.
        subject: What the value is to the user, for the error.
        side: Which side of the wire this is ("the worker"), for the error.

    Raises:
        DeserializationError: The value cannot be rebuilt in this process; the message says what is missing.
    """
    try:
        if buffers:
            return _loads(data, buffers=buffers)
        return _loads(data)
    except Exception as error:
        if _passes(error):
            raise
        raise _undeserializable(subject, side, error) from error


def deserialize_args(
    data: Bytes,
    buffers: Sequence[Bytes] = (),
    *,
    target: str = "",
    side: str = "",
    subject: str = "",
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, from what `serialize_args` made.

    Args:
        data: The stream.
        buffers: Its out-of-band buffers, in order.
        target: Name of what is called, for the error; cheaper to pass on every call than a text made from it.
        side: Which side of the wire this is ("the worker"), for the error.
        subject: What the arguments are to the user, for the error; made from `target` if empty.

    Raises:
        DeserializationError: An argument cannot be rebuilt in this process; the message says what is missing.
    """
    if not data:
        return (), {}
    try:
        arguments = _loads(data, buffers=buffers) if buffers else _loads(data)
    except Exception as error:
        if _passes(error):
            raise
        if not subject:
            subject = f"the arguments of {target}()" if target else "the arguments of a call"
        raise _undeserializable(subject, side, error) from error
    if type(arguments) is tuple:
        return arguments, {}
    args, kwargs = arguments
    return args, kwargs


def serialize_function(
    function_or_class: Callable[..., Any], *, hooks: Hooks = HOOKS
) -> Serialized:
    """A function or class for another process, with the references that it captured.

    By name where the receiver can import it; with its code, closure and the globals it uses where not, as anything
    that is defined in `__main__`, inside a function or by `lambda`. The bytes are the same whenever the same
    process serializes the same unchanged function; classes hold an id that another process would choose otherwise.

    Raises:
        UnserializableError: Something that it captures cannot be sent; the message names the variable.
    """
    try:
        return pickle_value(function_or_class, hooks)
    except Exception as error:
        raise _function_error(function_or_class, error, hooks) from error


def pickle_function(function_or_class: Callable[..., Any], *, hooks: Hooks = HOOKS) -> bytes:
    """`serialize_function` as one stream of bytes, fit for hashing. References in it are not reported: whoever has
    to keep them alive needs `serialize_function`."""
    try:
        return pickle_in_band(function_or_class, hooks)
    except Exception as error:
        raise _function_error(function_or_class, error, hooks) from error


def _function_error(function: Callable[..., Any], error: Exception, hooks: Hooks) -> Exception:
    if _passes(error):
        return error
    from shoal.serial.explain import name_of_callable, unserializable

    return unserializable(name_of_callable(function), function, error, hooks)


def _passes(error: Exception) -> bool:
    """Whether an error is not about the value: out of memory, or shoal's own, such as a cancellation."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, ShoalError) and not isinstance(error, UnserializableError)


def _undeserializable(subject: str, side: str, error: Exception) -> DeserializationError:
    from shoal.serial.explain import undeserializable

    return undeserializable(subject, side, error)
