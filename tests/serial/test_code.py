"""Functions and classes: by name where they can be imported, with their code where not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from shoal.serial import (
    Hooks,
    deserialize,
    pickle_function,
    serialize,
    serialize_function,
)
from tests.serial.ways import WAYS, Way

ROOT = Path(__file__).parents[2]


def counter_of_counters() -> Callable[[], Callable[[], int]]:
    outer = 0

    def make() -> Callable[[], int]:
        nonlocal outer
        outer += 1
        inner = outer * 10

        def count() -> int:
            nonlocal inner
            inner += 1
            return inner

        return count

    return make


@pytest.mark.parametrize("way", WAYS)
def test_lambdas_and_closures_over_closures(way: Way) -> None:
    assert way(lambda x: x + 1)(2) == 3
    make = way(counter_of_counters())
    first, second = make(), make()
    assert (first(), first(), second()) == (11, 12, 21)
    assert way(first)() == 13  # what came back can be sent on


@pytest.mark.parametrize("way", WAYS)
def test_recursive_and_mutually_recursive_local_functions(way: Way) -> None:
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert way(factorial)(5) == 120
    assert way([even])[0](7) is False


@pytest.mark.parametrize("way", WAYS)
def test_local_classes_and_their_instances(way: Way) -> None:
    class Base:
        def who(self) -> str:
            return "base"

    class Local(Base):
        limit = 3

        def __init__(self, value: int) -> None:
            self.value = value

        def who(self) -> str:
            return f"local over {super().who()}"

        @property
        def double(self) -> int:
            return self.value * 2

        @classmethod
        def make(cls) -> Local:
            return cls(cls.limit)

        @staticmethod
        def plain() -> int:
            return 1

    back = way(Local(4))
    assert (back.who(), back.double, back.plain(), back.make().value) == (
        "local over base", 8, 1, 3,
    )  # fmt: skip
    method = way(Local(5).who)
    assert method() == "local over base"


def test_importable_functions_go_by_name() -> None:
    data = pickle_function(json.dumps)
    assert len(data) < 40
    assert deserialize(data) is json.dumps


@contextmanager
def made_up_module(source: str) -> Iterator[Any]:
    """A module that can be imported, as far as this process is concerned."""
    module = types.ModuleType("made_up_module")
    module.__file__ = "made_up_module.py"
    exec(source, module.__dict__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def test_a_name_that_meant_it_once_is_not_trusted_for_ever(hooks: Hooks) -> None:
    with made_up_module("class Thing:\n  x = 1\ndef function(): return 1") as module:
        thing, function = module.Thing, module.function
        by_name = serialize([thing, function], hooks=hooks)
        assert deserialize(by_name.data) == [thing, function]
        module.Thing = module.function = None
        with_code = serialize([thing(), function], hooks=hooks)
        assert len(with_code.data) > 3 * len(by_name.data)
        instance, back = deserialize(with_code.data)
        assert (instance.x, back()) == (1, 1)


def test_modules_registered_by_value_are_sent_with_their_code_from_then_on(hooks: Hooks) -> None:
    with made_up_module("class Thing: pass") as module:
        by_name = serialize(module.Thing, hooks=hooks)
        cloudpickle.register_pickle_by_value(module)
        try:
            with_code = serialize(module.Thing, hooks=hooks)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        assert len(with_code.data) > 5 * len(by_name.data)
        assert serialize(module.Thing, hooks=hooks).data == by_name.data


def test_pickle_function_is_the_same_every_time() -> None:
    captured = {"k": [1, 2]}

    def function(x: int) -> Any:
        return captured, x

    assert pickle_function(function) == pickle_function(function)
    assert deserialize(pickle_function(function))(1) == ({"k": [1, 2]}, 1)


def test_pickle_function_holds_large_captures_inside() -> None:
    large, text = b"x" * 200_000, bytearray(b"y" * 100_000)

    def function() -> Any:
        return large, text

    assert deserialize(pickle_function(function))() == (large, text)
    beside = serialize_function(function)
    assert len(beside.buffers) == 2
    assert deserialize(beside.data, beside.buffers)() == (large, text)


def test_functions_sent_together_share_their_globals_and_those_sent_apart_do_not() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("n = 0\ndef up():\n global n\n n += 1\n return n\ndef show(): return n", namespace)
    hooks = Hooks()
    up, show = deserialize(serialize([namespace["up"], namespace["show"]], hooks=hooks).data)
    assert (up(), show()) == (1, 1)
    # The first serialization's pickler must not have kept the shared namespace.
    again = deserialize(serialize([namespace["show"]], hooks=hooks).data)[0]
    assert again() == 0


# --- as a program and a worker would ------------------------------------------------------------------------

PROGRAM = """
    import abc, dataclasses, enum, sys, typing
    from shoal.serial import serialize, pickle_function

    FACTOR = 3

    def helper(x): return x * FACTOR

    def task(x): return helper(x) + 1

    class Kind(enum.Enum):
        A = "a"

    class Base(abc.ABC):
        @abc.abstractmethod
        def f(self): ...

    class Model(Base):
        def __init__(self, w): self.w = w
        def f(self): return helper(self.w)
        def __eq__(self, other): return type(other) is type(self) and other.w == self.w

    @dataclasses.dataclass(frozen=True)
    class Config:
        lr: float = 0.1
        kind: Kind = Kind.A
        nested: "Config | None" = None

    class Pair(typing.NamedTuple):
        a: int
        b: str

    def tree(): return lambda: (Model, task)

    def main():
        value = {
            "task": task, "model": Model(2), "class": Model, "config": Config(nested=Config(0.5)),
            "pair": Pair(1, "x"), "kind": Kind.A, "tree": tree(), "same": [Model(2), Model(3)],
        }
        serialized = serialize(value)
        assert not serialized.buffers
        open(sys.argv[1], "wb").write(serialized.data)

    if __name__ == "__main__":
        main()
"""

WORKER = """
    import sys
    from shoal.serial import deserialize
    v = deserialize(open(sys.argv[1], "rb").read())
    assert v["task"](2) == 7
    assert v["model"].f() == 6 and type(v["model"]) is v["class"]
    assert v["model"] == v["same"][0] != v["same"][1]
    assert v["config"].nested.lr == 0.5 and v["config"].kind is v["kind"]
    assert v["kind"].value == "a" and type(v["kind"])("a") is v["kind"]
    assert v["pair"] == (1, "x") and v["pair"].b == "x"
    assert v["tree"]()[0] is v["class"] and v["tree"]()[1](1) == 4
    try:
        v["class"].__mro__[1]()
    except TypeError:
        print("fine")
"""


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_program_defines_in_main_works_in_a_process_that_has_never_seen_it(
    tmp_path: Path,
) -> None:
    program, worker, stream = (tmp_path / name for name in ("program.py", "worker.py", "stream"))
    program.write_text(textwrap.dedent(PROGRAM))
    worker.write_text(textwrap.dedent(WORKER))
    run(program, str(stream))
    assert run(worker, str(stream)) == "fine\n"


MISSING = """
    import sys
    sys.path.insert(0, sys.argv[2])
    import only_here
    from shoal.serial import serialize
    open(sys.argv[1], "wb").write(serialize(only_here.Thing()).data)
"""


def test_a_module_that_the_receiver_lacks_is_named(tmp_path: Path) -> None:
    from shoal.errors import DeserializationError

    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "only_here.py").write_text("class Thing: pass\n")
    program, stream = tmp_path / "program.py", tmp_path / "stream"
    program.write_text(textwrap.dedent(MISSING))
    run(program, str(stream), str(folder))
    with pytest.raises(DeserializationError) as caught:
        deserialize(stream.read_bytes(), subject="the arguments of f()", side="the worker")
    text = str(caught.value)
    assert text.startswith(
        "The arguments of f() arrived, but could not be rebuilt on the side of the worker (pid "
    )
    assert "module 'only_here' cannot be imported there" in text
    assert "runtime_env" in text
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_registered_deserializer_of_main_travels(tmp_path: Path) -> None:
    program, worker, stream = (tmp_path / name for name in ("program.py", "worker.py", "stream"))
    program.write_text(
        textwrap.dedent("""
            import sys, threading
            from shoal.serial import register_serializer, serialize
            class Db:
                def __init__(self, url): self.url, self.lock = url, threading.Lock()
            register_serializer(Db, serializer=lambda d: d.url, deserializer=lambda u: Db(u))
            open(sys.argv[1], "wb").write(serialize([Db("x://")]).data)
        """)
    )
    worker.write_text(
        textwrap.dedent("""
            import sys
            from shoal.serial import deserialize
            print(deserialize(open(sys.argv[1], "rb").read())[0].url)
        """)
    )
    run(program, str(stream))
    assert run(worker, str(stream)) == "x://\n"
