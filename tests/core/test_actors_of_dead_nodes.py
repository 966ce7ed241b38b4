"""The actor directory when a node dies: lives that ran there, lives that were on their way, owners and watchers."""

from __future__ import annotations

from typing import Any

from shoal.core.actor_records import Place, Save
from shoal.core.actors import ActorDirectory
from tests.core.actor_directories import JOB, drain, spec, start, told

CAUSE = "its node n-1 died: it sent no heartbeat for 10 s"


def effects(directory: ActorDirectory) -> list[Any]:
    return [effect for effect in drain(directory) if not isinstance(effect, Save)]


def created(*, started: bool = True, **fields: Any) -> tuple[ActorDirectory, bytes]:
    directory, made = ActorDirectory(), spec(**fields)
    directory.on_create(made, JOB, get_if_exists=False)
    directory.on_watch(made.actor_id, "w")
    if started:
        start(directory, made, 0)
    directory.outbox.clear()
    return directory, made.actor_id


def test_a_life_that_ran_there_counts_as_lost() -> None:
    directory, actor_id = created(max_restarts=1)
    directory.on_node_gone([actor_id], CAUSE)
    tell, place = effects(directory)
    assert told([tell]) == [("RESTARTING", 1, "Its node n-1 died: it sent no heartbeat for 10 s.")]
    assert (place.spec.actor_id, place.incarnation) == (actor_id, 1)
    # A late word of the first life changes nothing.
    directory.on_process_gone(actor_id, 0, "was killed by SIGKILL", expected=False)
    assert effects(directory) == []


def test_without_restarts_it_is_dead_and_says_of_what() -> None:
    directory, actor_id = created()
    directory.on_node_gone([actor_id], CAUSE)
    assert told(effects(directory)) == [
        ("DEAD", 0, "Its node n-1 died: it sent no heartbeat for 10 s.")
    ]


def test_a_life_without_a_process_begins_elsewhere_and_costs_no_restart() -> None:
    directory, actor_id = created(started=False)
    directory.on_node_gone([actor_id], CAUSE)
    (place,) = effects(directory)
    assert isinstance(place, Place)
    assert place.incarnation == 0


def test_what_was_to_end_anyway_has_ended() -> None:
    directory, actor_id = created(max_restarts=-1)
    directory.on_unreferenced(actor_id)
    directory.outbox.clear()
    directory.on_node_gone([actor_id], CAUSE)
    assert told(effects(directory)) == [("DEAD", 0, "Its last handle went out of scope.")]
    directory, actor_id = created(max_restarts=-1)
    directory.on_exiting(actor_id, 0, "it called exit_actor()")
    directory.on_node_gone([actor_id], CAUSE)
    assert told(effects(directory)) == [("DEAD", 0, "It called exit_actor().")]


def test_who_owns_and_who_watches_is_known() -> None:
    directory, _ = created()
    made = spec()
    assert directory.owners() == [made.owner]
    directory.on_watch(spec(9).actor_id, "x", "another owner")
    assert directory.owners() == [made.owner, "another owner"]
    assert directory.watchers() == ["w", "x"]
    directory.on_node_gone([spec(5).actor_id], CAUSE)
    assert effects(directory) == []
