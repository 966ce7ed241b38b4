"""The texts of serialization errors: what could not be sent, where it sits, why, and what to do.

Owns the wording. Imported only when something has failed, so that none of it weighs on a start.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

from shoal.errors import DeserializationError, UnserializableError
from shoal.serial.advice import advice_for, type_name
from shoal.serial.culprits import Culprit, Search
from shoal.serial.edges import place_of
from shoal.serial.hooks import Hooks


def unserializable(subject: str, value: Any, error: Exception, hooks: Hooks) -> UnserializableError:
    """The error for `value`, known to the user as `subject`, whose pickling raised `error`."""
    return _explained(subject, Search(hooks).find(value, error)[0])


def unserializable_argument(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
    hooks: Hooks,
    target: Callable[..., Any] | str,
    parameters: Sequence[str],
) -> UnserializableError:
    """The error for the arguments of a call of `target`, whose pickling raised `error`."""
    called = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    names = parameters or _parameters_of(target)
    whose = f" of {called}()" if called else ""
    search = Search(hooks)
    arguments: list[tuple[str, Any]] = []
    for i, value in enumerate(args):
        name = f"argument {names[i]!r}" if i < len(names) else f"positional argument {i}"
        arguments.append((name + whose, value))
    arguments += [(f"argument {name!r}{whose}", value) for name, value in kwargs.items()]
    for subject, value in arguments:
        failure = search.attempt(value)
        if failure is not None:
            return _explained(subject, search.find(value, failure)[0])
    # Each passes alone: the fault is not in one argument (a failure that comes and goes, or depth of nesting).
    return _explained(f"the arguments{whose}", Culprit(args, "", None, (), error, certain=False))


def undeserializable(subject: str, side: str, error: Exception) -> DeserializationError:
    """The error for a value whose unpickling raised `error` in this process."""
    where = f"on the side of {side}" if side else "on the receiving side"
    head = f"{subject} arrived, but could not be rebuilt {where} (pid {os.getpid()}): "
    head = head[0].upper() + head[1:]
    if isinstance(error, ModuleNotFoundError) and error.name:
        return DeserializationError(
            f"{head}module {error.name!r} cannot be imported there.\n"
            "  Why: functions and classes of importable modules are sent by name, and only those of __main__ with "
            "their code.\n"
            f"  What to do: install {error.name.partition('.')[0]!r} where workers run, put it on their path with "
            "runtime_env={'working_dir': ...} or {'py_modules': [...]}, or send its code along with "
            "cloudpickle.register_pickle_by_value(module)."
        )
    if isinstance(error, AttributeError | ImportError):
        hint = (
            "What to do: if a module has no such name there, both sides have different versions of it; make them "
            "equal. Otherwise a __setstate__ or constructor failed; the cause above this error shows where."
        )
    else:
        hint = (
            "What to do: the object's __setstate__, __reduce__ or constructor raised while it was rebuilt; the cause "
            "above this error shows where. Constructors must accept what __reduce__ returns (for exceptions: "
            "self.args)."
        )
    return DeserializationError(f"{head}{_reason(error)}.\n  {hint}")


def name_of_callable(function: Callable[..., Any]) -> str:
    """What a function or class is to the user: "function f"."""
    kind = "class" if isinstance(function, type) else "function"
    return f"{kind} {getattr(function, '__qualname__', type_name(type(function)))}"


def describe(obj: Any) -> str:
    """An object in a path, without its `repr`, which may be long, slow or broken."""
    if isinstance(obj, FunctionType):
        return f"function {obj.__name__} defined at {place_of(obj)}"
    if isinstance(obj, type):
        return f"class {type_name(obj)}"
    return f"object of type {type_name(type(obj))}"


def reason(culprit: Culprit) -> str:
    """Why a culprit cannot be sent, in one line."""
    return _reason(culprit.error)


def _explained(subject: str, culprit: Culprit) -> UnserializableError:
    if isinstance(culprit.error, RecursionError):
        return UnserializableError(
            f"Cannot send {subject} to another process: {_path(culprit)}.\n"
            "  Why: it is nested more deeply than pickle can follow, or the reduction of an object in it never ends.\n"
            "  What to do: send a flat form, such as a list of nodes that name each other by index."
        )
    if culprit.certain:
        last = f"What to do: {advice_for(culprit.obj, culprit.error)}"
    else:
        last = (
            "The search stopped there, and the culprit may be deeper inside: "
            "shoal.util.inspect_serializability(value, depth=...) on that part looks further."
        )
    return UnserializableError(
        f"Cannot send {subject} to another process: {_path(culprit)}.\n"
        f"  Why: {_reason(culprit.error)}.\n"
        f"  {last}"
    )


def _path(culprit: Culprit) -> str:
    return " -> ".join((*culprit.path, describe(culprit.obj)))


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _parameters_of(target: Callable[..., Any] | str) -> list[str]:
    """Names of the positional parameters of `target` as a caller counts them."""
    if isinstance(target, str):
        return []
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []  # builtins that tell nothing
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    # A function in the body of a class, taken from the class: its caller does not pass `self`.
    qualname = getattr(target, "__qualname__", "").rpartition("<locals>.")[2]
    if isinstance(target, FunctionType) and "." in qualname and names:
        del names[0]
    return names
