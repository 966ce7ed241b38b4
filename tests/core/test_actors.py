"""The actor directory: scenarios, and random histories against the rules that its docstring promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.actor_records import ActorState, Place, Stop, StopHow, Tell
from shoal.core.actors import ActorDirectory, NameTaken
from shoal.messages.node import ActorChange, ActorSpec
from tests.core.actor_directories import (
    JOB,
    create,
    drain,
    some_specs,
    spec,
    start,
    start_if_placed,
    told,
)


def running(made: ActorSpec) -> ActorDirectory:
    """A directory in which this actor is ALIVE, watched by "w"."""
    directory = ActorDirectory()
    directory.on_create(made, JOB, get_if_exists=False)
    directory.on_watch(made.actor_id, "w")
    start(directory, made, 0)
    drain(directory)
    return directory


def test_an_actor_lives_and_is_told_of() -> None:
    directory, made = ActorDirectory(), spec()
    info = directory.on_create(made, JOB, get_if_exists=False)
    assert not info.existed
    assert drain(directory) == [Place(made, 0, JOB)]
    directory.on_watch(made.actor_id, "w")
    assert told(drain(directory)) == [("PENDING", 0, "")]
    directory.on_placed(made.actor_id, 0, "w-1.sock", 7)
    (tell,) = drain(directory)
    assert tell == Tell(("w",), ActorChange(made.actor_id, "PENDING", 0, "w-1.sock", 7))
    directory.on_started(made.actor_id, 0, b"", "")
    assert told(drain(directory)) == [("ALIVE", 0, "")]
    directory.on_started(made.actor_id, 0, b"", "")
    directory.on_create(made, JOB, get_if_exists=False)
    assert drain(directory) == []


def test_a_name_belongs_to_one_living_actor() -> None:
    made = spec(name="n")
    directory = running(made)
    with pytest.raises(NameTaken, match="'n' is taken in namespace 'ns'"):
        directory.on_create(spec(2, name="n"), JOB, get_if_exists=False)
    assert directory.on_create(spec(2, name="n"), JOB, get_if_exists=True).existed
    directory.on_create(spec(3, name="n", namespace="other"), JOB, get_if_exists=False)
    assert directory.names(None) == [("ns", "n"), ("other", "n")]
    assert directory.names("ns") == [("ns", "n")]
    directory.on_kill(made.actor_id, no_restart=True)
    assert directory.lookup("ns", "n") is None
    directory.on_create(spec(4, name="n"), JOB, get_if_exists=False)
    found = directory.lookup("ns", "n")
    assert found is not None
    assert found.actor_id == spec(4).actor_id
    drain(directory)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (
            lambda d, i: d.on_process_gone(i, 0, "was killed by SIGKILL", expected=False),
            "The actor's process was killed by SIGKILL.",
        ),
        (lambda d, i: d.on_kill(i, no_restart=True), "It was killed by shoal.kill()."),
        (
            lambda d, _: d.on_owner_gone("d-1.sock", "the driver, pid 12", "exited"),
            "Its owner (the driver, pid 12) exited.",
        ),
        (
            lambda d, _: d.on_job_gone(JOB, "its driver (pid 12) has shut down"),
            "Its driver (pid 12) has shut down.",
        ),
    ],
)
def test_causes_are_sentences(end: Callable[[ActorDirectory, bytes], None], cause: str) -> None:
    made = spec()
    directory = running(made)
    end(directory, made.actor_id)
    assert told(drain(directory)) == [("DEAD", 0, cause)]
    # Who asks later hears the same.
    directory.on_watch(made.actor_id, "late")
    assert told(drain(directory)) == [("DEAD", 0, cause)]


def test_a_process_that_dies_is_replaced_within_the_budget() -> None:
    made = spec(max_restarts=1)
    directory = running(made)
    directory.on_process_gone(made.actor_id, 0, "was killed by SIGSEGV", expected=False)
    tell, place = drain(directory)
    assert told([tell]) == [("RESTARTING", 1, "The actor's process was killed by SIGSEGV.")]
    assert place == Place(made, 1, JOB)
    # The same news of an earlier life changes nothing.
    directory.on_process_gone(made.actor_id, 0, "was killed by SIGSEGV", expected=False)
    directory.on_started(made.actor_id, 0, b"", "")
    assert drain(directory) == []
    start(directory, made, 1)
    drain(directory)
    directory.on_process_gone(made.actor_id, 1, "exited with code 1", expected=False)
    ((state, incarnation, cause),) = told(drain(directory))
    assert (state, incarnation) == ("DEAD", 1)
    assert cause == (
        "The actor's process exited with code 1, and it had been restarted 1 times, as often as max_restarts allows."
    )


def test_minus_one_restarts_for_ever() -> None:
    made = spec(max_restarts=-1)
    directory = running(made)
    for life in range(50):
        directory.on_process_gone(made.actor_id, life, "was killed by SIGKILL", expected=False)
        start(directory, made, life + 1)
    assert told(drain(directory))[-1] == (
        "ALIVE",
        50,
        "The actor's process was killed by SIGKILL.",
    )


def test_kill_with_restart_ends_this_life_only() -> None:
    made = spec(max_restarts=1)
    directory = running(made)
    directory.on_kill(made.actor_id, no_restart=False)
    stop, tell, place = drain(directory)
    assert stop == Stop(made.actor_id, 0, "it was killed by shoal.kill()", StopHow.KILL)
    assert told([tell])[0][:2] == ("RESTARTING", 1)
    assert isinstance(place, Place)


def test_a_failed_init_is_final_and_keeps_its_error() -> None:
    made = spec(max_restarts=5)
    directory = ActorDirectory()
    directory.on_create(made, JOB, get_if_exists=False)
    directory.on_watch(made.actor_id, "w")
    directory.on_placed(made.actor_id, 0, "w.sock", 7)
    drain(directory)
    directory.on_started(made.actor_id, 0, b"pickle", "ValueError: no")
    stop, tell = drain(directory)
    assert stop.how is StopHow.EXIT
    assert (tell.change.state, tell.change.error) == ("DEAD", b"pickle")
    assert tell.change.cause == "Its __init__ raised ValueError: no."


def test_the_last_handle_ends_it_when_it_has_run_what_was_called() -> None:
    made = spec(max_restarts=5)
    directory = running(made)
    directory.on_unreferenced(made.actor_id)
    directory.on_unreferenced(made.actor_id)
    reason = "its last handle went out of scope"
    assert drain(directory) == [Stop(made.actor_id, 0, reason, StopHow.DRAIN)]
    directory.on_process_gone(made.actor_id, 0, "exited with code 0", expected=True)
    assert told(drain(directory)) == [("DEAD", 0, "Its last handle went out of scope.")]


def test_handles_may_go_before_it_runs() -> None:
    made = spec()
    directory = ActorDirectory()
    directory.on_create(made, JOB, get_if_exists=False)
    directory.on_unreferenced(made.actor_id)
    drain(directory)
    start(directory, made, 0)
    assert [e.how for e in drain(directory) if isinstance(e, Stop)] == [StopHow.DRAIN]


def test_its_own_wish_is_no_crash() -> None:
    made = spec(max_restarts=5)
    directory = running(made)
    directory.on_exiting(made.actor_id, 0, "it called exit_actor()")
    directory.on_process_gone(made.actor_id, 0, "exited with code 0", expected=True)
    assert told(drain(directory)) == [("DEAD", 0, "It called exit_actor().")]


def test_a_detached_actor_outlives_owner_job_and_handles() -> None:
    made = spec(detached=True)
    directory = running(made)
    directory.on_owner_gone("d-1.sock", "the driver, pid 12", "exited")
    directory.on_job_gone(JOB, "its driver has shut down")
    directory.on_unreferenced(made.actor_id)
    assert drain(directory) == []


def test_who_cannot_be_placed_is_dead() -> None:
    made = spec()
    directory = ActorDirectory()
    directory.on_create(made, JOB, get_if_exists=False)
    directory.on_watch(made.actor_id, "w")
    drain(directory)
    directory.on_refused(made.actor_id, 0, "runtime_env has pip, which this version cannot make")
    ((state, _, cause),) = told(drain(directory))
    assert state == "DEAD"
    assert cause.startswith("It could not be started: runtime_env has pip")


def test_a_watcher_that_is_gone_is_not_told() -> None:
    made = spec()
    directory = running(made)
    directory.on_watch(made.actor_id, "x")
    directory.on_watcher_gone("w")
    drain(directory)
    directory.on_kill(made.actor_id, no_restart=True)
    assert [e.watchers for e in drain(directory) if isinstance(e, Tell)] == [("x",)]


@given(st.data())
def test_random_histories(data: st.DataObject) -> None:
    directory = ActorDirectory()
    specs = some_specs(data)
    last: dict[bytes, ActorChange] = {}
    placed: dict[bytes, int] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        made = data.draw(st.sampled_from(specs))
        actor_id = made.actor_id
        incarnation = data.draw(st.integers(0, 3))
        match data.draw(st.integers(0, 9)):
            case 0 | 1:
                if actor_id not in last and create(directory, made):
                    directory.on_watch(actor_id, "w")
            case 2:
                directory.on_placed(actor_id, incarnation, "w.sock", 1)
            case 3:
                start_if_placed(directory, actor_id, incarnation)
            case 4:
                directory.on_started(actor_id, incarnation, b"e", "ValueError")
            case 5:
                directory.on_process_gone(
                    actor_id,
                    incarnation,
                    "was killed by SIGKILL",
                    expected=data.draw(st.booleans()),
                )
            case 6:
                directory.on_kill(actor_id, no_restart=data.draw(st.booleans()))
            case 7:
                directory.on_unreferenced(actor_id)
            case 8:
                directory.on_exiting(actor_id, incarnation, "it called exit_actor()")
            case 9:
                directory.on_owner_gone("d-1.sock", "the driver, pid 1", "exited")
        for effect in drain(directory):
            if isinstance(effect, Place):
                # Lives are numbered without gaps, and never twice.
                assert effect.incarnation == placed.get(effect.spec.actor_id, -1) + 1
                placed[effect.spec.actor_id] = effect.incarnation
                limit = effect.spec.max_restarts
                assert limit < 0 or effect.incarnation <= limit
            elif isinstance(effect, Tell):
                change = effect.change
                before = last.get(change.actor_id)
                assert before is None or before.state != "DEAD", "the dead do not change"
                assert before is None or change.incarnation >= before.incarnation
                assert (change.state == "DEAD") <= change.cause.endswith(".")
                last[change.actor_id] = change
    for made in specs:
        actor = directory.get(made.actor_id)
        if made.actor_id in last:
            assert (actor is None) == (last[made.actor_id].state == ActorState.DEAD.value)
