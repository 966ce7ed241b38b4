"""Actors that somebody has a handle on before the directory has heard of their creation."""

from __future__ import annotations

from shoal.core import actors
from shoal.core.actor_records import Place, StopHow
from shoal.core.actors import ActorDirectory
from tests.core.actor_directories import JOB, drain, spec, start, told

OWNER = "d-1.sock"


def expecting() -> ActorDirectory:
    """A directory in which "w" watches an actor that was not created yet."""
    directory = ActorDirectory()
    directory.on_watch(spec().actor_id, "w", OWNER)
    assert drain(directory) == []
    return directory


def test_a_watcher_that_is_early_hears_everything() -> None:
    directory, made = expecting(), spec()
    directory.on_create(made, JOB, get_if_exists=False)
    tell, place = drain(directory)
    assert told([tell]) == [("PENDING", 0, "")]
    assert isinstance(place, Place)
    start(directory, made, 0)
    assert [state for state, _, _ in told(drain(directory))] == ["PENDING", "ALIVE"]


def test_without_a_living_owner_nothing_is_expected() -> None:
    directory = ActorDirectory()
    directory.on_watch(spec().actor_id, "w")
    ((state, _, cause),) = told(drain(directory))
    assert state == "DEAD"
    assert "not known" in cause


def test_the_owner_ends_before_it_created_what_is_expected() -> None:
    directory = expecting()
    directory.on_watch(spec().actor_id, "x", OWNER)
    directory.on_owner_gone("another", "the worker, pid 2", "exited")
    assert drain(directory) == []
    directory.on_owner_gone(OWNER, "the driver, pid 1", "exited")
    (tell,) = drain(directory)
    assert tell.watchers == ("w", "x")
    dead = ("DEAD", 0, "Its owner (the driver, pid 1) exited before it was created.")
    assert told([tell]) == [dead]
    directory.on_watch(spec().actor_id, "late", OWNER)
    assert told(drain(directory)) == [dead]


KILLED = ("DEAD", 0, "It was killed by shoal.kill().")


def test_what_is_killed_before_its_creation_arrives_never_starts() -> None:
    directory, made = expecting(), spec(name="n")
    directory.on_kill(made.actor_id, no_restart=False, owner=OWNER)
    assert drain(directory) == []
    directory.on_kill(made.actor_id, no_restart=True, owner=OWNER)
    assert told(drain(directory)) == [KILLED]
    # Who killed it has ended before it was created: it stays dead.
    directory.on_watcher_gone("w")
    info = directory.on_create(made, JOB, get_if_exists=False)
    assert (info.actor_id, info.existed) == (made.actor_id, False)
    assert drain(directory) == []
    assert directory.lookup("ns", "n") is None
    assert directory.get(made.actor_id) is None
    directory.on_watch(made.actor_id, "creator")
    assert told(drain(directory)) == [KILLED]


def test_a_kill_may_be_the_first_that_is_heard_of_an_actor() -> None:
    """After a restart of the control store: what nobody has acknowledged is said before the watches are said again."""
    directory, made = ActorDirectory(), spec()
    directory.on_kill(made.actor_id, no_restart=True, owner=OWNER)
    directory.on_watch(made.actor_id, "w", OWNER)
    assert told(drain(directory)) == [KILLED]
    directory.on_create(made, JOB, get_if_exists=False)
    assert drain(directory) == []
    # Of one whose owner has ended nothing is to come.
    directory.on_kill(spec(2).actor_id, no_restart=True)
    assert directory.record(spec(2).actor_id) is None


def test_a_watcher_that_ends_expects_nothing() -> None:
    directory = expecting()
    directory.on_watcher_gone("w")
    directory.on_create(spec(), JOB, get_if_exists=False)
    (place,) = drain(directory)
    assert isinstance(place, Place)


def test_what_died_too_long_ago_to_be_remembered_is_not_expected() -> None:
    directory = ActorDirectory()
    for number in range(1, actors.REMEMBERED + 3):
        made = spec(number)
        directory.on_create(made, JOB, get_if_exists=False)
        directory.on_kill(made.actor_id, no_restart=True)
        directory.outbox.clear()
    for number in (1, 2):
        directory.on_watch(spec(number).actor_id, "w", OWNER)
        ((state, _, cause),) = told(drain(directory))
        assert state == "DEAD"
        assert "long ago" in cause
    # What comes after the last may be on its way.
    directory.on_watch(spec(actors.REMEMBERED + 3).actor_id, "w", OWNER)
    assert drain(directory) == []


def test_an_actor_that_was_created_in_time_is_killed_by_its_process() -> None:
    directory, made = expecting(), spec()
    directory.on_create(made, JOB, get_if_exists=False)
    drain(directory)
    directory.on_kill(made.actor_id, no_restart=True)
    stop, tell = drain(directory)
    assert stop.how is StopHow.KILL
    assert told([tell]) == [("DEAD", 0, "It was killed by shoal.kill().")]
