"""What pickling a value leads to next: the parts of an object, each with the words a user would find it by.

Owns the picture of the object graph as the pickler sees it: containers by their items, functions by what they
capture, classes by their bodies, everything else by what its own reduction returns, so that `__getstate__`, slots
and registered serializers count exactly as they do in earnest. Used only after a failure; it may run user code
(`__reduce__` and its kin) a second time, and treats whatever that raises as "no parts".
"""

from __future__ import annotations

import builtins
import copyreg
import dis
import functools
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from shoal.serial.hooks import Hooks
from shoal.serial.pickler import PROTOCOL, ValuePickler

_MAX_KEY_TEXT = 60


class Edge(NamedTuple):
    """One step into an object: `words` describe it in a path, `name` is the variable, key or index alone."""

    words: str
    name: str
    child: Any


def edges(obj: Any, hooks: Hooks) -> Iterator[Edge]:
    """The parts of `obj` that pickling it would visit, in about the order it would."""
    cls = type(obj)
    if cls is dict:
        yield from _dict_edges(obj)
    elif cls is list or cls is tuple:
        yield from _sequence_edges(obj, cls.__name__)
    elif cls is set or cls is frozenset:
        for element in obj:
            yield Edge(f"an element of a {cls.__name__}", "element", element)
    elif cls is FunctionType:
        yield from _function_edges(obj)
    elif isinstance(obj, type):
        yield from _class_edges(obj)
    elif cls is MethodType or (
        cls is BuiltinMethodType and not isinstance(obj.__self__, type(builtins))
    ):
        words = f"the object that method {obj.__name__} is bound to"
        yield Edge(words, "__self__", obj.__self__)
        if cls is MethodType:
            yield Edge(f"the function of method {obj.__name__}", obj.__name__, obj.__func__)
    elif cls is functools.partial:
        yield Edge("the function of a partial", "func", obj.func)
        for i, value in enumerate(obj.args):
            yield Edge(f"positional argument {i} of a partial", str(i), value)
        for key, value in obj.keywords.items():
            yield Edge(f"keyword argument {key!r} of a partial", key, value)
    elif cls is staticmethod or cls is classmethod:
        yield Edge(f"the function of a {cls.__name__}", "__func__", obj.__func__)
    elif cls is property:
        for part in ("fget", "fset", "fdel"):
            yield Edge(f"the {part} of a property", part, getattr(obj, part))
    elif cls is CellType:
        with_contents = _cell_contents(obj)
        if with_contents is not None:
            yield Edge("the contents of a cell", "cell_contents", with_contents[0])
    else:
        yield from _reduced_edges(obj, hooks)


def place_of(function: FunctionType) -> str:
    """Where a function is defined, as `file.py:12`."""
    code = function.__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _short(value: Any) -> str:
    """A key in an error's text; user code may have written its `__repr__`."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error we are explaining
        return f"of type {type(value).__qualname__}"
    return text if len(text) <= _MAX_KEY_TEXT else text[:_MAX_KEY_TEXT] + "…"


def _dict_edges(items: dict[Any, Any]) -> Iterator[Edge]:
    # dict's own method: a subclass may have replaced `items`
    for key, value in dict.items(items):
        if type(key) is not str:
            yield Edge(f"the dict key {_short(key)} itself", _short(key), key)
        name = key if type(key) is str else _short(key)
        yield Edge(f"dict key {_short(key)}", name, value)


def _sequence_edges(items: Any, kind: str) -> Iterator[Edge]:
    for i, item in enumerate(items):
        yield Edge(f"{kind} item {i}", str(i), item)


def _cell_contents(cell: CellType) -> tuple[Any] | None:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return None  # still empty: a name that is bound later


def _function_edges(function: FunctionType) -> Iterator[Edge]:
    whose = f"of function {function.__name__} defined at {place_of(function)}"
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        contents = _cell_contents(cell)
        if contents is not None:
            yield Edge(f"closure variable {name!r} {whose}", name, contents[0])
    for name in _globals_used(function.__code__):
        if name in function.__globals__:
            yield Edge(f"global {name!r} used by {whose[3:]}", name, function.__globals__[name])
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    named = dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
    for name, value in (named | (function.__kwdefaults__ or {})).items():
        yield Edge(f"default of parameter {name!r} {whose}", name, value)
    for name, value in function.__dict__.items():
        yield Edge(f"attribute .{name} {whose}", name, value)
    for name, value in function.__annotations__.items():
        yield Edge(f"annotation of {name!r} {whose}", name, value)


def _globals_used(code: CodeType) -> list[str]:
    """Names of globals that the code reads or writes, nested functions included."""
    names: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"}:
            names[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(_globals_used(constant)))
    return list(names)


_CLASS_INTERNALS = frozenset(("__dict__", "__weakref__", "_abc_impl", "__doc__", "__module__"))


def _class_edges(cls: type) -> Iterator[Edge]:
    for base in cls.__bases__:
        if base is not object:
            yield Edge(f"base class {base.__qualname__}", base.__name__, base)
    slots = cls.__dict__.get("__slots__", ())
    for name, value in list(cls.__dict__.items()):
        if name in _CLASS_INTERNALS or name in slots:
            continue
        kind = "method" if isinstance(value, FunctionType) else "attribute"
        yield Edge(f"{kind} {name!r} of class {cls.__qualname__}", name, value)


def _reduce(obj: Any, hooks: Hooks) -> Any:
    """What the pickler would get from `obj`, or None if that raises or is a mere name."""
    try:
        reduced = ValuePickler(hooks).reducer_override(obj)
        if reduced is NotImplemented:
            registered = copyreg.dispatch_table.get(type(obj))
            reduced = registered(obj) if registered else obj.__reduce_ex__(PROTOCOL)
    except Exception:  # noqa: BLE001 - user code; the object itself is then the culprit
        return None
    return reduced if isinstance(reduced, tuple) and len(reduced) >= 2 else None


def _reduced_edges(obj: Any, hooks: Hooks) -> Iterator[Edge]:
    reduced = _reduce(obj, hooks)
    if reduced is None:
        return
    function, arguments, state, items, pairs, *_ = (*reduced, None, None, None)[:5]
    kind = type(obj).__name__
    if state is not None:
        yield from _state_edges(obj, state)
    if type(arguments) is tuple:
        yield from _argument_edges(obj, function, arguments)
    try:
        if items is not None:
            yield from _sequence_edges(items, kind)
        if pairs is not None:
            yield from _dict_edges(dict(pairs))
    except Exception:  # noqa: BLE001 - iterators of user code
        return
    if not isinstance(function, type):
        yield Edge(f"the function that rebuilds a {kind}", _short(function), function)


def _state_edges(obj: Any, state: Any) -> Iterator[Edge]:
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    if not all(part is None or type(part) is dict for part in parts):
        yield Edge(f"the state of a {type(obj).__name__} (from its __getstate__)", "state", state)
        return
    attributes = getattr(obj, "__dict__", {})
    for part in parts:
        for key, value in (part or {}).items():
            # Slots come in the second part. A key that is no attribute was made by __getstate__.
            if attributes.get(key) is value or part is not parts[0]:
                yield Edge(f"attribute .{key}", str(key), value)
            else:
                words = f"key {_short(key)} of the state of a {type(obj).__name__}"
                yield Edge(words, str(key), value)


def _argument_edges(obj: Any, function: Any, arguments: tuple[Any, ...]) -> Iterator[Edge]:
    kind = type(obj).__name__
    if function is getattr(copyreg, "__newobj__", None):
        yield Edge(f"the class {arguments[0].__qualname__}", "__class__", arguments[0])
        arguments = arguments[1:]
        fields = getattr(obj, "_fields", None)  # a namedtuple's state is its arguments
        if isinstance(obj, tuple) and isinstance(fields, tuple) and len(fields) == len(obj):
            for name, value in zip(fields, obj, strict=True):
                yield Edge(f"attribute .{name}", name, value)
            return
    elif isinstance(function, type):
        yield Edge(f"the class {function.__qualname__}", "__class__", function)
    for i, value in enumerate(arguments):
        if isinstance(obj, BaseException):
            yield Edge(f"argument {i} of the exception {kind}", f"args[{i}]", value)
        elif value is not obj:
            yield Edge(f"part {i} of what a {kind} is rebuilt from", str(i), value)
