"""The actor directory after a restart of the control store: what was saved, what nodes claim, what becomes of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import actors
from shoal.core.actor_records import Place, Save, SaveForgotten, Stop, StopHow, Tell
from shoal.core.actors import ActorDirectory, NameTaken
from shoal.messages.node import ActorSpec
from shoal.messages.records import ActorRecord, DeadActor, LivingActor
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

LOST = "The actor's process was lost: its node did not come back after the control store had restarted."


class Saved:
    """A storage that a shell would keep: what the saving effects say, and nothing else."""

    def __init__(self) -> None:
        self.records: dict[bytes, ActorRecord] = {}
        self.specs: dict[bytes, ActorSpec] = {}
        self.forgotten: dict[bytes, bytes] = {}

    def take(self, directory: ActorDirectory) -> list[Any]:
        """Do what the outbox says of saving; the other effects."""
        directory.check()
        others = []
        for effect in directory.outbox:
            match effect:
                case Save(actor_id, new):
                    self._save(directory, actor_id, new)
                case SaveForgotten(process):
                    last = directory.forgotten(process)
                    if last is None:
                        del self.forgotten[process]
                    else:
                        self.forgotten[process] = last
                case _:
                    others.append(effect)
        directory.outbox.clear()
        return others

    def _save(self, directory: ActorDirectory, actor_id: bytes, new: bool) -> None:
        record = directory.record(actor_id)
        if record is None:
            del self.records[actor_id]
            return
        self.records[actor_id] = record
        actor = directory.get(actor_id)
        if new and actor is not None:
            self.specs[actor_id] = actor.spec

    def restored(self) -> ActorDirectory:
        """The directory of a control store that starts with this."""
        directory = ActorDirectory()
        directory.restore(
            [(self.specs[i], r) for i, r in self.records.items() if isinstance(r, LivingActor)],
            [r.change for r in self.records.values() if isinstance(r, DeadActor)],
            self.forgotten,
        )
        directory.check()
        assert directory.outbox == []
        return directory


def after_restart(*, made: ActorSpec, started: bool = True, **events: Any) -> ActorDirectory:
    """A directory restored after an actor was created, placed and, perhaps, started; with "w" watching again."""
    before, saved = ActorDirectory(), Saved()
    before.on_create(made, JOB, get_if_exists=False)
    before.on_placed(made.actor_id, 0, "w-0.sock", 100)
    if started:
        before.on_started(made.actor_id, 0, b"", "")
    for name, arguments in events.items():
        getattr(before, name)(made.actor_id, *arguments)
    saved.take(before)
    directory = saved.restored()
    directory.on_watch(made.actor_id, "w", made.owner)
    directory.outbox.clear()
    return directory


def test_a_restored_actor_is_as_it_was() -> None:
    made = spec(name="n", max_restarts=3)
    directory = after_restart(made=made)
    actor = directory.get(made.actor_id)
    assert actor is not None
    assert (actor.state.value, actor.address, actor.pid) == ("ALIVE", "w-0.sock", 100)
    assert actor.spec is made
    assert directory.names("ns") == [("ns", "n")]
    with pytest.raises(NameTaken):
        directory.on_create(spec(2, name="n"), JOB, get_if_exists=False)
    directory.on_watch(made.actor_id, "x")
    assert told(drain(directory)) == [("ALIVE", 0, "")]
    # The creator's request, sent again because no answer came.
    assert directory.on_create(made, JOB, get_if_exists=False).existed is False
    assert drain(directory) == []


def test_a_claimed_life_goes_on() -> None:
    made = spec(max_restarts=1)
    directory = after_restart(made=made)
    assert directory.on_claim(made.actor_id, 0)
    directory.on_claims_over()
    assert drain(directory) == []
    directory.on_process_gone(made.actor_id, 0, "was killed by SIGKILL", expected=False)
    assert told(drain(directory))[0][:2] == ("RESTARTING", 1)


def test_a_life_that_nobody_claims_was_lost() -> None:
    made = spec(max_restarts=1)
    directory = after_restart(made=made)
    directory.on_claims_over()
    tell, place = drain(directory)
    assert told([tell]) == [("RESTARTING", 1, LOST)]
    assert place == Place(made, 1, JOB)
    # Its node comes late.
    assert not directory.on_claim(made.actor_id, 0)


def test_a_life_that_nobody_claims_may_have_been_the_last() -> None:
    directory = after_restart(made=spec())
    directory.on_claims_over()
    assert told(drain(directory)) == [("DEAD", 0, LOST)]


def test_a_life_that_had_no_process_is_placed_again() -> None:
    made = spec()
    before, saved = ActorDirectory(), Saved()
    before.on_create(made, JOB, get_if_exists=False)
    saved.take(before)
    directory = saved.restored()
    directory.on_claims_over()
    assert drain(directory) == [Place(made, 0, JOB)]
    start(directory, made, 0)
    directory.on_claims_over()
    assert drain(directory) == []


def test_a_placement_that_a_node_has_is_not_ordered_twice() -> None:
    made = spec()
    before, saved = ActorDirectory(), Saved()
    before.on_create(made, JOB, get_if_exists=False)
    saved.take(before)
    directory = saved.restored()
    assert directory.on_claim(made.actor_id, 0)
    directory.on_claims_over()
    assert drain(directory) == []


def test_claims_of_what_is_over_are_refused() -> None:
    before, saved = ActorDirectory(), Saved()
    for number in (1, 2):
        each = spec(number, max_restarts=5)
        before.on_create(each, JOB, get_if_exists=False)
        start(before, each, 0)
    # The first is dead, the second in its next life; that the old processes were to be killed, nobody may have heard.
    before.on_kill(spec(1).actor_id, no_restart=True)
    before.on_kill(spec(2).actor_id, no_restart=False)
    saved.take(before)
    directory = saved.restored()
    assert not directory.on_claim(spec(1).actor_id, 0)
    assert not directory.on_claim(spec(2).actor_id, 0)
    assert not directory.on_claim(spec(3).actor_id, 0)
    assert directory.on_claim(spec(2).actor_id, 1)
    assert drain(directory) == []


def test_the_cause_of_a_death_survives() -> None:
    made = spec()
    before, saved = ActorDirectory(), Saved()
    before.on_create(made, JOB, get_if_exists=False)
    before.on_placed(made.actor_id, 0, "w-0.sock", 100)
    before.on_started(made.actor_id, 0, b"pickle", "ValueError: no")
    saved.take(before)
    directory = saved.restored()
    # Its owner lives: without the record its creation would be expected for ever.
    directory.on_watch(made.actor_id, "w", made.owner)
    (tell,) = drain(directory)
    assert told([tell]) == [("DEAD", 0, "Its __init__ raised ValueError: no.")]
    assert tell.change.error == b"pickle"


def test_one_that_expected_creation_and_was_told_otherwise_stays_told() -> None:
    before, saved = ActorDirectory(), Saved()
    before.on_watch(spec().actor_id, "w", "d-1.sock")
    before.on_owner_gone("d-1.sock", "the driver, pid 1", "exited")
    saved.take(before)
    directory = saved.restored()
    directory.on_watch(spec().actor_id, "w", "d-1.sock")
    assert told(drain(directory))[0][0] == "DEAD"


def test_what_was_killed_before_it_was_created_is_not_made_after_a_restart() -> None:
    before, saved = ActorDirectory(), Saved()
    before.on_watch(spec().actor_id, "w", "d-1.sock")
    before.on_kill(spec().actor_id, no_restart=True, owner="d-1.sock")
    assert [told([effect])[0][0] for effect in saved.take(before)] == ["DEAD"]
    directory = saved.restored()
    directory.on_create(spec(), JOB, get_if_exists=False)
    assert drain(directory) == []
    directory.on_watch(spec().actor_id, "w", "d-1.sock")
    assert told(drain(directory)) == [("DEAD", 0, "It was killed by shoal.kill().")]


def test_what_is_remembered_no_more_is_not_expected_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors, "REMEMBERED", 3)
    before, saved = ActorDirectory(), Saved()
    for number in range(1, 7):
        before.on_create(spec(number), JOB, get_if_exists=False)
        before.on_kill(spec(number).actor_id, no_restart=True)
        saved.take(before)
    assert len(saved.records) == 3
    directory = saved.restored()
    directory.on_watch(spec(1).actor_id, "w", "d-1.sock")
    ((state, _, cause),) = told(drain(directory))
    assert state == "DEAD"
    assert "not known" in cause
    directory.on_watch(spec(9).actor_id, "w", "d-1.sock")
    assert drain(directory) == []


def test_the_forgotten_are_bounded_in_the_storage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "REMEMBERED", 3)
    before, saved = ActorDirectory(), Saved()
    for process in range(10):
        made = spec(actor_id=process.to_bytes(8, "big") + bytes(8))
        before.on_create(made, JOB, get_if_exists=False)
        before.on_kill(made.actor_id, no_restart=True)
        saved.take(before)
    assert len(saved.forgotten) == 3


def test_the_wish_to_drain_is_not_forgotten() -> None:
    """Nobody utters it twice: the last handle is gone."""
    made = spec(max_restarts=5)
    directory = after_restart(made=made, on_unreferenced=())
    assert directory.on_claim(made.actor_id, 0)
    reason = "its last handle went out of scope"
    assert drain(directory) == [Stop(made.actor_id, 0, reason, StopHow.DRAIN)]
    assert directory.on_claim(made.actor_id, 0)
    assert drain(directory) == []
    directory.on_process_gone(made.actor_id, 0, "exited with code 0", expected=True)
    assert told(drain(directory)) == [("DEAD", 0, "Its last handle went out of scope.")]


def test_a_wish_to_end_is_no_crash_after_a_restart_either() -> None:
    made = spec(max_restarts=5)
    directory = after_restart(made=made, on_exiting=(0, "it called exit_actor()"))
    directory.on_process_gone(made.actor_id, 0, "exited with code 0", expected=False)
    assert told(drain(directory)) == [("DEAD", 0, "It called exit_actor().")]


def test_restarts_are_counted_across_restarts_of_the_control_store() -> None:
    made = spec(max_restarts=1)
    before, saved = ActorDirectory(), Saved()
    before.on_create(made, JOB, get_if_exists=False)
    start(before, made, 0)
    before.on_process_gone(made.actor_id, 0, "was killed by SIGKILL", expected=False)
    start(before, made, 1)
    saved.take(before)
    directory = saved.restored()
    directory.on_watch(made.actor_id, "w")
    directory.on_claims_over()
    _, (state, incarnation, cause) = told(drain(directory))
    assert (state, incarnation) == ("DEAD", 1)
    assert "as often as max_restarts allows" in cause


@given(st.data())
def test_a_restart_at_any_moment_changes_nothing_that_is_remembered(data: st.DataObject) -> None:
    """Random histories with restarts in between. What the saved records make is what the old directory had; watchers who
    watch again see no actor of the dead alive, and no life twice."""
    directory, saved = ActorDirectory(), Saved()
    specs = some_specs(data)
    created: set[bytes] = set()
    dead: dict[bytes, str] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        made = data.draw(st.sampled_from(specs))
        actor_id = made.actor_id
        incarnation = data.draw(st.integers(0, 2))
        match data.draw(st.integers(0, 10)):
            case 0 | 1:
                if actor_id not in created and create(directory, made):
                    created.add(actor_id)
            case 2:
                directory.on_placed(actor_id, incarnation, "w.sock", 1)
            case 3:
                start_if_placed(directory, actor_id, incarnation)
            case 4:
                directory.on_process_gone(actor_id, incarnation, "ended", expected=False)
            case 5:
                directory.on_kill(actor_id, no_restart=data.draw(st.booleans()))
            case 6:
                directory.on_unreferenced(actor_id)
            case 7:
                directory.on_exiting(actor_id, incarnation, "it called exit_actor()")
            case 8:
                actor = directory.get(actor_id)
                current = actor is not None and actor.incarnation == incarnation
                assert directory.on_claim(actor_id, incarnation) == current
            case 9:
                directory.on_claims_over()
            case 10:
                saved.take(directory)
                old, directory = directory, saved.restored()
                for each in specs:
                    assert directory.record(each.actor_id) == old.record(each.actor_id)
                assert sorted(directory.names(None)) == sorted(old.names(None))
                for each in created:
                    directory.on_watch(each, "w")
        for effect in saved.take(directory):
            if isinstance(effect, Tell):
                change = effect.change
                if change.actor_id in dead:
                    assert (change.state, change.cause) == ("DEAD", dead[change.actor_id])
                elif change.state == "DEAD":
                    dead[change.actor_id] = change.cause
