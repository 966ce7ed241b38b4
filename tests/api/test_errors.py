"""Errors of the user's code, by type and by text, and values that cannot be sent or had."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import GetTimeoutError, ShoalError, TaskError, UnserializableError
from tests.api.gates import Gate, Trace
from tests.api.scripts import run_script
from tests.api.tasks import identity

pytestmark = pytest.mark.usefixtures("shared_cluster")

PACKAGE = os.path.dirname(os.path.abspath(shoal.__file__)) + os.sep


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


@shoal.remote(max_retries=0)
def throw(error: BaseException | type[BaseException]) -> None:
    raise error


@shoal.remote(max_retries=0)
def throw_value_error() -> None:
    deeper()


def deeper() -> None:
    raise ValueError("the value is wrong")


def failure_of(ref: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        get(ref)
    return caught.value


# --- both types at once ----------------------------------------------------------------------------------------------------


def test_an_error_is_a_task_error_and_of_its_own_type() -> None:
    error = failure_of(throw_value_error.remote())
    assert isinstance(error, ValueError)
    assert isinstance(error, ShoalError)
    assert type(error.cause) is ValueError
    assert error.cause.args == ("the value is wrong",)
    assert "ValueError" in type(error).__name__


@pytest.mark.parametrize("kind", [ValueError, TaskError, ShoalError, Exception])
def test_it_is_caught_by_any_of_its_names(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the value is wrong"):
        get(throw_value_error.remote())


def test_a_value_can_be_asked_for_again_and_fails_again() -> None:
    ref = throw_value_error.remote()
    assert failure_of(ref) is not failure_of(ref)


class RefusedError(Exception):
    """Its constructor takes something else than its message."""

    def __init__(self, who: str, *, code: int) -> None:
        super().__init__(f"{who} was refused ({code})")
        self.who = who
        self.code = code


def test_an_exception_with_a_constructor_of_its_own() -> None:
    @shoal.remote(max_retries=0)
    def refuse() -> None:
        raise RefusedError("somebody", code=403)

    with pytest.raises(RefusedError, match="somebody was refused") as caught:
        get(refuse.remote())
    assert isinstance(caught.value, TaskError)
    assert (caught.value.who, caught.value.code) == ("somebody", 403)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "reason"),
        StopIteration(3),
        ZeroDivisionError(),
        AssertionError,
        NotImplementedError("later"),
        RecursionError("deep"),
    ],
    ids=lambda error: getattr(error, "__name__", type(error).__name__),
)
def test_exceptions_of_many_kinds(error: Any) -> None:
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as caught:
        get(throw.remote(error))
    assert isinstance(caught.value, TaskError)
    assert type(caught.value.cause) is kind


def test_os_errors_keep_their_number() -> None:
    @shoal.remote(max_retries=0)
    def open_missing() -> None:
        os.stat("/no/such/file")

    with pytest.raises(FileNotFoundError) as caught:
        get(open_missing.remote())
    assert caught.value.errno == 2
    assert caught.value.filename == "/no/such/file"


def test_groups_are_caught_with_except_star() -> None:
    @shoal.remote(max_retries=0)
    def group() -> None:
        raise ExceptionGroup("both", [ValueError("one"), KeyError("other")])

    seen = []
    try:
        get(group.remote())
    except* ValueError as values:
        seen += [str(error) for error in values.exceptions]
    except* KeyError as keys:
        seen += [str(error) for error in keys.exceptions]
    assert len(seen) == 2
    with pytest.raises(ExceptionGroup, match="both") as caught:
        get(group.remote())
    assert isinstance(caught.value, TaskError)


def test_notes_of_an_exception_arrive() -> None:
    @shoal.remote(max_retries=0)
    def noted() -> None:
        error = ValueError("no")
        error.add_note("look here")
        raise error

    error = failure_of(noted.remote())
    assert "look here" in str(error)
    assert error.cause.__notes__ == ["look here"]


def test_an_error_can_be_sent_on() -> None:
    again = get(identity.remote(failure_of(throw_value_error.remote())))
    assert isinstance(again, ValueError)
    assert isinstance(again, TaskError)
    assert "in deeper" in str(again)


def test_an_exception_that_cannot_be_pickled() -> None:
    class LockedError(Exception):
        def __init__(self) -> None:
            super().__init__("cannot leave")
            self.lock = threading.Lock()

    @shoal.remote(max_retries=0)
    def fail() -> None:
        raise LockedError

    error = failure_of(fail.remote())
    assert "LockedError" in str(error)
    assert "cannot leave" in str(error)


def test_system_exit_in_a_task_does_not_end_the_driver() -> None:
    with pytest.raises(ShoalError):
        get(throw.remote(SystemExit(3)))
    assert get(identity.remote(1)) == 1


def test_raising_something_else_than_an_exception() -> None:
    @shoal.remote(max_retries=0)
    def wrong() -> None:
        raise "text"  # type: ignore[misc]  # this is what must fail # noqa: B016 - the same

    with pytest.raises(TypeError):
        get(wrong.remote())


# --- what an error tells ---------------------------------------------------------------------------------------------------


def test_the_text_has_the_remote_traceback_and_no_frame_of_shoal() -> None:
    error = failure_of(throw_value_error.remote())
    text = str(error)
    assert "in throw_value_error" in text
    assert "in deeper" in text
    assert 'raise ValueError("the value is wrong")' in text
    assert Path(__file__).name in text
    assert PACKAGE not in text
    assert text == str(error)
    assert error.traceback_str.strip() in text


def test_an_error_tells_where_it_came_from() -> None:
    @shoal.remote
    class Faulty:
        def pid(self) -> int:
            return os.getpid()

        def fail(self) -> None:
            raise ValueError("no")

    faulty = Faulty.remote()
    pid = get(faulty.pid.remote())
    error = failure_of(faulty.fail.remote())
    assert error.pid == pid
    assert str(pid) in str(error)
    assert "fail" in error.function_name
    assert error.actor_id == faulty._actor_id.hex()
    assert "Faulty" in str(error)
    assert failure_of(throw_value_error.remote()).actor_id is None


def test_chained_exceptions_are_shown() -> None:
    @shoal.remote(max_retries=0)
    def translate() -> None:
        try:
            raise KeyError("inner reason")
        except KeyError as error:
            raise ValueError("outer") from error

    text = str(failure_of(translate.remote()))
    assert "inner reason" in text
    assert "direct cause" in text


def test_an_error_that_passes_through_tasks_keeps_type_and_traceback() -> None:
    @shoal.remote(max_retries=0)
    def middle() -> Any:
        return shoal.get(throw_value_error.remote(), timeout=30)

    @shoal.remote(max_retries=0)
    def outer() -> Any:
        return shoal.get(middle.remote(), timeout=30)

    with pytest.raises(ValueError, match="the value is wrong") as caught:
        get(outer.remote())
    text = str(caught.value)
    assert all(name in text for name in ("outer", "middle", "throw_value_error", "deeper"))
    assert PACKAGE not in text


def test_a_task_can_catch_what_its_child_raised() -> None:
    @shoal.remote
    def careful() -> str:
        try:
            shoal.get(throw_value_error.remote(), timeout=30)
        except ValueError as error:
            return f"caught {type(error.__cause__ or error).__name__}"
        return "nothing"

    assert get(careful.remote()).startswith("caught")


def test_uncaught_errors_end_a_script_with_the_remote_traceback(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote(max_retries=0)
        def fail():
            raise ValueError("seen by the user")

        shoal.get(fail.remote(), timeout=30)
        """,
        exit_code=1,
    )
    assert 'raise ValueError("seen by the user")' in result.stderr
    assert re.search(r"ValueError.*seen by the user", result.stderr)


# --- errors of arguments -----------------------------------------------------------------------------------------------------


def test_an_argument_that_failed_fails_the_task_with_the_same_error(
    traces: Callable[[str], Trace],
) -> None:
    ran = traces("ran")

    @shoal.remote
    def use(value: Any) -> None:
        ran.add(value)

    failed = throw_value_error.remote()
    for ref in (use.remote(failed), use.remote(value=failed), use.remote(use.remote(failed))):
        with pytest.raises(ValueError, match="the value is wrong"):
            get(ref)
    assert ran.words() == []


def test_a_failure_inside_a_container_is_only_met_by_get() -> None:
    @shoal.remote
    def count(items: list[Any]) -> int:
        return len(items)

    assert get(count.remote([throw_value_error.remote()])) == 1


def test_an_exception_as_a_value_is_a_value() -> None:
    assert isinstance(get(identity.remote(ValueError("a value"))), ValueError)
    assert isinstance(get(shoal.put(ValueError("a value"))), ValueError)


def test_an_argument_that_cannot_be_sent_is_named_with_its_path() -> None:
    @shoal.remote
    def train(config: Any, *, seed: int = 0) -> None:
        pass

    with pytest.raises(UnserializableError) as caught:
        train.remote({"model": [threading.Lock()]})
    assert isinstance(caught.value, TypeError)
    text = str(caught.value)
    assert "config" in text
    assert "train" in text
    assert re.search(r"model.*0.*lock", text, re.DOTALL)

    with pytest.raises(UnserializableError, match="seed"):
        train.remote(None, seed=threading.Lock())


def test_a_variable_of_a_closure_that_cannot_be_sent_is_named() -> None:
    session = threading.Lock()

    @shoal.remote
    def use() -> bool:
        return session.locked()

    with pytest.raises(UnserializableError, match="session"):
        use.remote()


def test_put_and_results_that_cannot_be_sent() -> None:
    with pytest.raises(UnserializableError):
        shoal.put([threading.Lock()])

    @shoal.remote(max_retries=0)
    def leak() -> Any:
        return {"lock": threading.Lock()}

    with pytest.raises(TypeError, match="lock"):
        get(leak.remote())


class Unpicky:
    """Can be sent, but not be rebuilt."""

    def __reduce__(self) -> Any:
        return rebuild_nothing, ()


def rebuild_nothing() -> None:
    raise ValueError("cannot be rebuilt")


def test_an_argument_that_cannot_be_rebuilt_fails_the_task() -> None:
    with pytest.raises(ShoalError, match="cannot be rebuilt"):
        get(identity.options(max_retries=0).remote(Unpicky()))


# --- time -------------------------------------------------------------------------------------------------------------------


def test_a_timeout_is_a_timeout_error(gates: Callable[[str], Gate]) -> None:
    gate = gates("never")

    @shoal.remote
    def wait() -> None:
        gate.wait()

    ref = wait.remote()
    with pytest.raises(TimeoutError) as caught:
        shoal.get(ref, timeout=0.05)
    assert isinstance(caught.value, GetTimeoutError)
    assert isinstance(caught.value, ShoalError)
    gate.open()
    get(ref)
