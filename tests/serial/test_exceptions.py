from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ActorDiedError, DeserializationError, ObjectLostError, TaskError
from shoal.serial import (
    ExceptionStandIn,
    Hooks,
    deserialize,
    dump_exception,
    load_exception,
    serialize,
)


def sent(error: BaseException) -> Any:
    return load_exception(dump_exception(error))


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """`error`, after it was really raised."""
    try:
        if cause is not None:
            raise error from cause
        raise error
    except type(error) as caught:
        return caught


class OtherSignatureError(ValueError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class WrappingError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"wrapped {text}")


class LockedError(KeyError):
    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())
        self.lock = threading.Lock()
        self.retries = 3


class UnpicklableError(RuntimeError):
    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("never")


class UnrebuildableError(Exception):
    def __new__(cls, *args: Any) -> UnrebuildableError:
        if UnrebuildableError.closed:
            raise OSError("closed")
        return super().__new__(cls, *args)

    closed = False


class TextlessError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("text"),
        ValueError("a", 2, [3]),
        KeyError("k"),
        OSError(2, "none", "file"),
        FileNotFoundError(2, "none", "a", None, "b"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        SystemExit(4),
        KeyboardInterrupt(),
        ImportError("x", name="n", path="p"),
        SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)),
        ActorDiedError("gone", "ab12", True),
        ObjectLostError("lost", "cd"),
        ValueError("\udc80 lone surrogate"),
    ],
    ids=repr,
)
def test_exceptions_that_pickle_themselves(error: BaseException) -> None:
    back = sent(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_details_in_c_fields() -> None:
    assert sent(StopIteration(3)).value == 3
    assert sent(SystemExit(4)).code == 4
    assert sent(OSError(2, "none", "file")).filename == "file"
    assert sent(ImportError("x", name="n", path="p")).name == "n"


def test_an_init_that_does_not_take_args() -> None:
    back = sent(OtherSignatureError(7, "bad"))
    assert type(back) is OtherSignatureError
    assert (str(back), back.code) == ("7: bad", 7)


def test_a_message_is_not_wrapped_twice() -> None:
    assert str(sent(WrappingError("x"))) == "wrapped x"


def test_parts_that_cannot_be_sent_are_left_out_and_named() -> None:
    error = LockedError("key")
    error.add_note("mine")
    back = sent(error)
    assert type(back) is LockedError
    assert back.args[0] == "key"
    assert back.args[1].startswith("<unlocked _thread.lock")
    assert back.retries == 3
    assert not hasattr(back, "lock")
    assert back.__notes__ == ["mine", "Not sent with it: lock."]


def test_a_reduce_that_raises_is_got_round() -> None:
    back = sent(UnpicklableError("text"))
    assert type(back) is UnpicklableError
    assert back.args == ("text",)


def test_the_stand_in_tells_all_there_is() -> None:
    error = raised(UnrebuildableError("text"))
    error.add_note("a note")
    UnrebuildableError.closed = True
    try:
        back = sent(error)
    finally:
        UnrebuildableError.closed = False
    assert type(back) is ExceptionStandIn
    assert back.type_name == f"{__name__}.UnrebuildableError"
    assert back.message == "text"
    assert "in raised" in back.traceback_str
    assert back.reason == "OSError: closed"
    assert back.__notes__ == ["a note"]
    assert "which could not be sent itself: OSError: closed" in str(back)
    again = sent(back)  # a stand-in can be sent on
    assert vars(again) == vars(back)


def test_a_type_that_only_the_receiver_cannot_rebuild() -> None:
    data = dump_exception(raised(UnrebuildableError("text")))
    UnrebuildableError.closed = True
    try:
        back = load_exception(data)
    finally:
        UnrebuildableError.closed = False
    assert type(back) is ExceptionStandIn
    assert back.message == "text"
    assert "in raised" in back.traceback_str


def test_an_exception_without_text() -> None:
    assert type(sent(TextlessError("x"))) is TextlessError

    class LocalError(TextlessError):
        def __reduce__(self) -> tuple[Any, ...]:
            raise ZeroDivisionError

        def __init__(self) -> None:
            self.lock = threading.Lock()

    back = sent(LocalError())
    assert isinstance(back, Exception)


def test_notes_and_chains() -> None:
    root = raised(KeyError("root"))
    middle = raised(LockedError("middle"), cause=root)
    error = raised(OtherSignatureError(1, "top"), cause=middle)
    error.add_note("note")
    back = sent(error)
    assert back.__notes__ == ["note"]
    assert back.__suppress_context__
    assert type(back.__cause__) is LockedError
    assert type(back.__cause__.__cause__) is KeyError
    assert back.__cause__.__cause__.args == ("root",)
    text = "".join(traceback.format_exception(back))
    assert text.count("direct cause of the following exception") == 2


def test_contexts() -> None:
    def fail(suppress: bool) -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            if suppress:
                raise ValueError("second") from None
            raise ValueError("second") from (first if suppress is None else None)

    for suppress in (True, False):
        with pytest.raises(ValueError) as caught:
            fail(suppress)
        back = sent(caught.value)
        assert type(back.__context__) is KeyError
        assert back.__suppress_context__ == caught.value.__suppress_context__


def test_a_cause_that_is_the_context_is_sent_once() -> None:
    error: BaseException = ValueError("0")
    for i in range(40):  # sent twice each, it would be 2^40 of them
        outer = ValueError(str(i + 1))
        outer.__context__ = error
        outer.__cause__ = error
        error = outer
    back = sent(error)
    assert back.__context__ is back.__cause__
    depth = 0
    while back.__cause__ is not None:
        back, depth = back.__cause__, depth + 1
    assert depth == 40


def test_different_causes_and_contexts_all_the_way_are_bounded() -> None:
    error: BaseException = ValueError("0")
    for i in range(30):
        outer = ValueError(str(i))
        outer.__cause__, outer.__context__ = error, ValueError("other")
        outer.__context__.__cause__ = error
        error = outer
    assert len(dump_exception(error)) < 100_000


def test_chains_in_circles_end() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    back = sent(first)
    assert back.__cause__.args == ("2",)
    assert back.__cause__.__cause__ is None
    first.other, second.other = second, first  # type: ignore[attr-defined]  # any attribute will do
    assert sent(first).other.args == ("2",)


def test_groups_keep_what_can_be_kept_of_each_member() -> None:
    members = [
        raised(OtherSignatureError(1, "a"), cause=KeyError("why")),
        LockedError("b"),
        ExceptionGroup("inner", [UnpicklableError("c"), ValueError("d")]),
    ]
    group = ExceptionGroup("outer", members)  # type: ignore[type-var]  # they are Exceptions
    group.add_note("note")
    back = sent(group)
    assert type(back) is ExceptionGroup
    assert back.message == "outer"
    assert back.__notes__ == ["note"]
    first, second, inner = back.exceptions
    assert type(first) is OtherSignatureError
    assert type(first.__cause__) is KeyError
    assert type(second) is LockedError
    assert [type(e) for e in inner.exceptions] == [UnpicklableError, ValueError]
    base = sent(BaseExceptionGroup("b", [KeyboardInterrupt()]))
    assert type(base) is BaseExceptionGroup


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], code: int = 0) -> OwnGroup:
        self = super().__new__(cls, "own", errors)
        self.code = code
        return self

    code: int

    def derive(self, excs: Any) -> OwnGroup:
        return OwnGroup(list(excs), self.code)


def test_a_group_with_a_constructor_of_its_own_loses_no_text() -> None:
    back = sent(OwnGroup([ValueError("x"), KeyError("y")], 3))
    text = str(back) + repr(back)
    assert "own" in text


def test_a_task_error_keeps_its_type_and_the_chain_of_its_cause() -> None:
    cause = raised(OtherSignatureError(1, "x"), cause=KeyError("root"))
    error = TaskError("f", "the traceback", cause, 12).as_instanceof_cause()
    back = sent(error)
    assert isinstance(back, TaskError)
    assert isinstance(back, OtherSignatureError)
    assert type(back.cause) is OtherSignatureError
    assert type(back.cause.__cause__) is KeyError
    assert back.traceback_str == "the traceback"


def test_a_task_error_with_a_cause_that_cannot_come() -> None:
    error = TaskError("f", "tb", UnrebuildableError("x")).as_instanceof_cause()
    UnrebuildableError.closed = True
    try:
        back = sent(error)
    finally:
        UnrebuildableError.closed = False
    assert isinstance(back, TaskError)
    assert type(back.cause) is ExceptionStandIn
    assert back.traceback_str == "tb"


def test_local_exception_classes() -> None:
    class LocalError(Exception):
        pass

    back = sent(LocalError("x"))
    assert type(back) is LocalError
    assert back.args == ("x",)


def test_exceptions_inside_ordinary_values_are_ordinary() -> None:
    back = deserialize(serialize([ValueError("x")]).data)
    assert back[0].args == ("x",)


def test_the_stream_is_a_pickle_that_deserialize_reads_too() -> None:
    assert type(deserialize(dump_exception(LockedError("x")))) is LockedError


def test_registered_types_inside_exceptions(hooks: Hooks) -> None:
    class Ref:
        pass

    hooks.register_ref_type(Ref, lambda _: (str, ("a ref",)))
    back = load_exception(dump_exception(ValueError(Ref()), hooks=hooks))
    assert back.args == ("a ref",)


@pytest.mark.parametrize("data", [b"", b"rubbish", serialize([1]).data])
def test_bytes_that_hold_no_exception(data: bytes) -> None:
    with pytest.raises(DeserializationError):
        load_exception(data)


makers: list[Callable[..., BaseException]] = [
    ValueError,
    LockedError,
    UnpicklableError,
    WrappingError,
    TextlessError,
    lambda text: OtherSignatureError(1, text),
    lambda text: ValueError(text, threading.Lock()),
]
simple = st.builds(lambda make, text: make(text), st.sampled_from(makers), st.text(max_size=5))
nested = st.recursive(
    simple,
    lambda inner: (
        st.builds(raised, simple, inner)
        | st.builds(ExceptionGroup, st.text(max_size=3), st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda outer: ValueError("holds", outer), inner)
    ),
    max_leaves=8,
)


def shape(error: BaseException) -> Any:
    """What must survive of any exception."""
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return (
        type(error),
        [shape(member) for member in members],
        error.__cause__ and shape(error.__cause__),
        [shape(arg) for arg in error.args if isinstance(arg, BaseException)],
    )


@given(error=nested)
def test_any_exception_arrives_in_its_shape(error: BaseException) -> None:
    assert shape(sent(error)) == shape(error)
