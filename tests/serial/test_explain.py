"""The errors: which argument or variable, by which path, why, and what to do."""

from __future__ import annotations

import functools
import socket
import sqlite3
import threading
import time
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import DeserializationError, UnserializableError
from shoal.serial import Hooks, deserialize, serialize, serialize_args, serialize_function

LOCK = threading.Lock()
HERE = Path(__file__).name


class Service:
    def __init__(self, conn: Any = None) -> None:
        self.name = "service"
        self.conn = conn if conn is not None else threading.Lock()

    def run(self, config: Any, retries: int = 1) -> None:
        pass


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self) -> None:
        self.first = 1
        self.second = threading.Lock()


class Stateful:
    def __getstate__(self) -> dict[str, Any]:
        return {"made_up": [threading.Lock()]}


class OddState:
    def __getstate__(self) -> Any:
        return [threading.Lock()]

    def __setstate__(self, state: Any) -> None:
        pass


class Reduced:
    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (1, threading.Lock())


class Broken:
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("I refuse.")


@dataclass
class Config:
    service: Service


Pair = namedtuple("Pair", "left right")


def f(config: Any, *, debug: bool = False) -> None:
    pass


def message(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(UnserializableError) as caught:
        function(*args, **options)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def path_in(value: Any) -> str:
    """The path part of the error for a value."""
    first = message(serialize, value).splitlines()[0]
    head = "Cannot send the value to another process: "
    assert first.startswith(head)
    return first.removeprefix(head)


def test_the_whole_text() -> None:
    text = message(serialize_args, ({"db": Service()},), {}, target=f)
    assert text == (
        "Cannot send argument 'config' of f() to another process: "
        "dict key 'db' -> attribute .conn -> object of type _thread.lock.\n"
        "  Why: TypeError: cannot pickle '_thread.lock' object.\n"
        "  What to do: a lock works inside one process only. Create it where it is used (in the task, or in the "
        "actor's __init__), or leave it out in the object's __getstate__ and make a new one in __setstate__. To "
        "guard state between tasks, put that state into an actor."
    )


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "object of type _thread.lock."),
        ([1, [2, LOCK]], "list item 1 -> list item 1 -> object"),
        ((1, LOCK), "tuple item 1 -> object"),
        ({1: {"k": LOCK}}, "dict key 1 -> dict key 'k' -> object"),
        ({LOCK: 1}, "the dict key <unlocked _thread.lock object at"),
        ({LOCK}, "an element of a set -> object"),
        (frozenset([LOCK]), "an element of a frozenset -> object"),
        (Service(), "attribute .conn -> object"),
        (Config(Service()), "attribute .service -> attribute .conn -> object"),
        (Slotted(), "attribute .second -> object"),
        (Stateful(), "key 'made_up' of the state of a Stateful -> list item 0 -> object"),
        (OddState(), "the state of a OddState (from its __getstate__) -> list item 0 -> object"),
        (Reduced(), "part 1 of what a Reduced is rebuilt from -> object"),
        (Pair(1, LOCK), "attribute .right -> object"),
        (OrderedDict(a=LOCK), "dict key 'a' -> object"),
        (defaultdict(list, a=LOCK), "dict key 'a' -> object"),
        (deque([1, LOCK]), "deque item 1 -> object"),
        (ValueError("x", LOCK), "argument 1 of the exception ValueError -> object"),
        (types.SimpleNamespace(x=LOCK), "attribute .x -> object"),
        (Service().run, "the object that method run is bound to -> attribute .conn -> object"),
        (LOCK.acquire, "the object that method acquire is bound to -> object of type _thread.lock"),
        (functools.partial(f, 1, LOCK), "positional argument 1 of a partial -> object"),
        (functools.partial(f, k=LOCK), "keyword argument 'k' of a partial -> object"),
        ([Broken()], f"list item 0 -> object of type {__name__}.Broken."),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_paths(value: Any, path: str) -> None:
    assert path_in(value).startswith(path)


def test_a_name_in_the_first_line_says_which_argument() -> None:
    ok: dict[str, Any] = {"fine": 1}

    def subject(*args: Any, **kwargs: Any) -> str:
        target = kwargs.pop("target")
        names = kwargs.pop("parameters", ())
        text = message(serialize_args, args, kwargs, target=target, parameters=names)
        return text.partition(" to another process")[0].removeprefix("Cannot send ")

    assert subject(ok, LOCK, target=lambda first, second: None) == (
        "argument 'second' of <lambda>()"
    )
    assert subject(1, debug=LOCK, target=f) == "argument 'debug' of f()"
    assert subject(1, LOCK, target=Service.run) == "argument 'retries' of run()"
    assert subject(1, LOCK, target=Service().run) == "argument 'retries' of run()"
    assert subject(LOCK, target="g") == "positional argument 0 of g()"
    assert subject(LOCK, target="g", parameters=["config"]) == "argument 'config' of g()"
    assert subject(1, 2, 3, LOCK, target=f) == "positional argument 3 of f()"
    assert subject(LOCK, target=Service) == "argument 'conn' of Service()"
    assert subject(LOCK, target="") == "positional argument 0"


def test_the_subject_is_the_callers() -> None:
    text = message(serialize, LOCK, subject="the result of f()")
    assert text.startswith("Cannot send the result of f() to another process: object of type")


# --- functions and classes ----------------------------------------------------------------------------------


def in_main(source: str, **names: Any) -> dict[str, Any]:
    """A namespace like that of a program."""
    namespace = {"__name__": "__main__", **names}
    exec(compile(source, "/home/user/program.py", "exec"), namespace)
    return namespace


def test_closure_variables() -> None:
    lock = threading.Lock()

    def task() -> Any:
        return lock

    line = task.__code__.co_firstlineno
    text = message(serialize_function, task)
    assert text.startswith(
        "Cannot send function test_closure_variables.<locals>.task to another process: "
        f"closure variable 'lock' of function task defined at {HERE}:{line} -> "
        "object of type _thread.lock."
    )


def test_closure_of_a_closure() -> None:
    lock = threading.Lock()

    def inner() -> Any:
        return lock

    def outer() -> Any:
        return inner()

    assert "closure variable 'inner' of function outer" in message(serialize_function, outer)
    assert (
        f"-> closure variable 'lock' of function inner defined at {HERE}:"
        f"{inner.__code__.co_firstlineno} -> object" in message(serialize_function, outer)
    )


def test_globals_used_directly_and_by_others() -> None:
    source = "def helper():\n  return [LOCK for _ in range(3)]\n\ndef task():\n  return helper()\n"
    task = in_main(source, LOCK=LOCK)["task"]
    assert message(serialize_function, task).splitlines()[0] == (
        "Cannot send function task to another process: "
        "global 'helper' used by function task defined at program.py:4 -> "
        "global 'LOCK' used by function helper defined at program.py:1 -> "
        "object of type _thread.lock."
    )


def test_globals_that_are_not_used_do_no_harm() -> None:
    task = in_main("def task():\n  return 1\n", LOCK=LOCK)["task"]
    assert deserialize(serialize_function(task).data)() == 1


def test_defaults_attributes_and_annotations() -> None:
    def with_default(a: Any, lock: Any = LOCK) -> None:
        pass

    def with_keyword_default(*, lock: Any = LOCK) -> None:
        pass

    def with_attribute() -> None:
        pass

    with_attribute.lock = LOCK  # type: ignore[attr-defined]  # functions take attributes
    for function in (with_default, with_keyword_default):
        assert "default of parameter 'lock' of function with" in message(
            serialize_function, function
        )
    assert "attribute .lock of function with_attribute" in message(
        serialize_function, with_attribute
    )


def test_classes() -> None:
    class Base:
        shared = threading.Lock()

    class Derived(Base):
        def method(self, default: Any = LOCK) -> None:
            pass

        @property
        def prop(self) -> Any:
            return None

    text = message(serialize_function, Derived)
    assert "Cannot send class test_classes.<locals>.Derived to another process: base class" in text
    assert "attribute 'shared' of class test_classes.<locals>.Base -> object of type" in text
    Base.shared = None  # type: ignore[assignment]  # what matters is the other one now
    text = message(serialize, [Derived()])
    assert "list item 0 -> the class test_classes.<locals>.Derived -> method 'method'" in text
    assert "default of parameter 'default' of function method" in text


class Singleton:
    """Sent by a name that its module does not have."""

    def __reduce__(self) -> str:
        return "no_such_name"


def test_a_name_that_means_nothing_there() -> None:
    text = message(serialize, [Singleton()])
    assert "list item 0 -> object of type" in text
    assert "no_such_name" in text
    assert "it is sent by name, and its module holds nothing or something else" in text


# --- advice -------------------------------------------------------------------------------------------------


def test_advice_fits_the_type(tmp_path: Path) -> None:
    def advice(value: Any) -> str:
        return message(serialize, [value]).partition("What to do: ")[2]

    async def coroutine_function() -> None:
        pass

    coroutine = coroutine_function()
    with (
        socket.socket() as sock,
        open(tmp_path / "file", "wb") as file,
        sqlite3.connect(":memory:") as database,
    ):
        for handle in (sock, file, database):
            assert "Send the path or address instead" in advice(handle)
    database.close()
    assert "a lock works inside one process" in advice(threading.RLock())
    assert "a lock works inside one process" in advice(threading.Event())
    assert "once a thread" in advice(threading.local())
    assert "its running frame cannot be copied" in advice(i for i in range(3))
    assert "its running frame cannot be copied" in advice(coroutine)
    coroutine.close()
    assert "register_serializer(Broken, serializer=" in advice(Broken())


def test_too_deep() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    text = message(serialize, nested)
    assert "nested more deeply than pickle can follow" in text
    while nested:  # freed level by level: the interpreter's own way would recurse
        nested = nested.pop()


# --- the search is bounded ----------------------------------------------------------------------------------


def test_one_bad_item_among_many_is_found_fast() -> None:
    value: list[Any] = [{"i": i} for i in range(50_000)]
    value[43_210] = {"i": LOCK}
    start = time.monotonic()
    assert path_in(value).startswith("list item 43210 -> dict key 'i' -> object")
    assert time.monotonic() - start < 10


def test_the_search_survives_cycles() -> None:
    first, second = Service("x"), Service("y")
    first.conn, second.conn = second, first
    second.name = LOCK  # type: ignore[assignment]  # so that the search must look past the cycle
    assert path_in(first).startswith("attribute .conn -> attribute .name -> object")


class FailsTogether:
    """Each passes alone; the second one in the same stream fails."""

    seen = 0

    def __reduce__(self) -> tuple[Any, ...]:
        FailsTogether.seen += 1
        if FailsTogether.seen == 2:
            raise ValueError("only one of us")
        return FailsTogether, ()


def test_a_failure_that_comes_and_goes_still_ends_in_an_error() -> None:
    FailsTogether.seen = 0
    text = message(serialize, [FailsTogether(), FailsTogether()])
    assert "Why: ValueError: only one of us" in text
    FailsTogether.seen = 1
    text = message(serialize_args, (FailsTogether(), 1), {}, target=f)
    assert "the arguments of f()" in text
    assert "Why: ValueError: only one of us" in text


def test_broken_representations_do_not_hide_the_error() -> None:
    class NoRepr:
        def __repr__(self) -> str:
            raise ValueError

        def __hash__(self) -> int:
            return 1

    assert "dict key of type test_broken" in path_in({NoRepr(): LOCK})


def test_a_failing_reduction_of_the_runtime_keeps_its_own_words(hooks: Hooks) -> None:
    class Generator:
        pass

    def refuse(_: Generator) -> tuple[Any, ...]:
        raise UnserializableError("A generator of results belongs to the process that made it.")

    hooks.register_ref_type(Generator, refuse)
    text = message(serialize, {"k": Generator()}, hooks=hooks)
    assert text.splitlines()[0].endswith("dict key 'k' -> object of type " + full(Generator) + ".")
    assert "A generator of results belongs to the process that made it." in text


def full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# --- the other side -----------------------------------------------------------------------------------------


class RaisesOnArrival:
    def __getstate__(self) -> dict[str, Any]:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise ValueError("no room here")


def test_a_value_that_cannot_be_rebuilt() -> None:
    data = serialize([RaisesOnArrival()]).data
    with pytest.raises(DeserializationError) as caught:
        deserialize(data, subject="the result of f()", side="the driver")
    text = str(caught.value)
    assert text.startswith("The result of f() arrived, but could not be rebuilt on the side of")
    assert "ValueError: no room here" in text
    assert "__setstate__" in text
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_name_that_the_receiver_lacks() -> None:
    data = b"cjson\nno_such_name\n."
    with pytest.raises(DeserializationError, match="different versions"):
        deserialize(data)
