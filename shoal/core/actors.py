"""The actor directory: which actors there are, in which state, under which name, and when one lives again.

::

    (create) ─► PENDING ─► ALIVE ─► RESTARTING ─► ALIVE …
                   │         │           │
                   └─────────┴───────────┴──────► DEAD

Each life of an actor is an *incarnation*, numbered from 0. Whatever a node reports carries the number, and reports about
an earlier life are dropped in one guard (`_current`).

Guarantees:
- a name is held by at most one actor that is not dead, within its namespace;
- an actor that is DEAD stays dead, with a cause that is a sentence; the causes of the last `REMEMBERED` are kept;
- an actor starts at most `max_restarts` times again (-1: always), and never after its `__init__` raised, after it ended
  by its own wish, or after its owner or its last handle went (a detached actor has neither);
- whoever watches an actor gets its present state at once, and then every change. One whose creation has not arrived yet (a
  handle can travel faster than the news of what it belongs to) is expected for as long as its owner lives. Killed meanwhile, it
  is dead, and its creation makes nothing.

The shell turns the effects in `outbox` into orders to nodes and messages to watchers, in order.

Of a control store that ends, its successor knows what was saved (`restore`), and not which orders were obeyed. So it does nothing until the
nodes have come back and said which lives they have (`on_claim`). A life that is known is confirmed, one that is not is to be ended; and
when no more claims are to be expected (`on_claims_over`), what nobody has claimed is placed again, or was lost. A life has one node, the
one it was sent to, and only that one's claim counts: the shell sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from shoal.core.actor_records import (
    MOVES,
    Actor,
    ActorState,
    Effect,
    Place,
    Save,
    SaveForgotten,
    Stop,
    StopHow,
    Tell,
    Watcher,
)
from shoal.errors import InternalError
from shoal.ids import prefix_of
from shoal.messages.node import GROUP_REMOVED, ActorChange, ActorInfo, ActorSpec
from shoal.messages.placement import InBundle
from shoal.messages.records import ActorRecord, DeadActor, LivingActor

REMEMBERED: Final = 10_000
"""Dead actors whose cause is kept. More: later askers get the true cause, at some 300 bytes each."""

_KILLED: Final = "it was killed by shoal.kill()"


class NameTaken(Exception):  # noqa: N818 - the name is taken already when it is raised
    """Another living actor has the name."""


class _Expected:
    """An actor that somebody has a handle on and whose creation has not arrived."""

    __slots__ = ("owner", "watchers")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.watchers: dict[Watcher, None] = {}


class ActorDirectory:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.outbox: list[Effect] = []
        self._actors: dict[bytes, Actor] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._expected: dict[bytes, _Expected] = {}
        self._dead: dict[bytes, ActorChange] = {}
        # By the creating process's part of the id, the last actor that is remembered no more. Ids of one process ascend: what
        # comes after that one may be on its way, what comes before is long dead.
        self._forgotten: dict[bytes, bytes] = {}
        # Restored, and not claimed by the node that should have them.
        self._unconfirmed: dict[bytes, None] = {}

    # --- questions -----------------------------------------------------------------------------------------------

    def get(self, actor_id: bytes) -> Actor | None:
        """An actor that is not dead."""
        return self._actors.get(actor_id)

    def record(self, actor_id: bytes) -> ActorRecord | None:
        """What is to be written down about an actor; None if nothing is remembered of it."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            return actor.record()
        change = self._dead.get(actor_id)
        return None if change is None else DeadActor(change)

    def forgotten(self, process: bytes) -> bytes | None:
        """Of the actors that a process created, the last one that is remembered no more."""
        return self._forgotten.get(process)

    def known(self) -> list[bytes]:
        """The actors of which anything is remembered."""
        return [*self._dead, *self._actors]

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._actors.values())

    def owners(self) -> list[str]:
        """The addresses of all processes that created actors which live, or are expected."""
        owners = {actor.spec.owner: None for actor in self._actors.values()}
        owners.update((expected.owner, None) for expected in self._expected.values())
        return list(owners)

    def watchers(self) -> list[Watcher]:
        """Whoever watches an actor."""
        holders: Iterable[Actor | _Expected] = (*self._actors.values(), *self._expected.values())
        return list(dict.fromkeys(watcher for holder in holders for watcher in holder.watchers))

    def expects(self, actor_id: bytes) -> bool:
        """Whether somebody watches an actor that was not created yet."""
        return actor_id in self._expected

    def lookup(self, namespace: str, name: str) -> ActorInfo | None:
        """The actor that holds a name."""
        actor_id = self._names.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id].info(existed=True)

    def names(self, namespace: str | None) -> list[tuple[str, str]]:
        """(namespace, name) of every named actor that is not dead; of all namespaces for None."""
        return [pair for pair in self._names if namespace is None or pair[0] == namespace]

    # --- events from clients -------------------------------------------------------------------------------------

    def on_create(self, spec: ActorSpec, job_id: bytes, *, get_if_exists: bool) -> ActorInfo:
        """A new actor; or, with `get_if_exists`, the one that has the name.

        Raises:
            NameTaken: another actor has it.
        """
        known = self._actors.get(spec.actor_id)
        if known is not None:
            # The same request once more: a resent message.
            return known.info(existed=False)
        if spec.actor_id in self._dead:
            # It was killed before this arrived. Its creator hears of that as everybody does.
            return Actor(spec, job_id).info(existed=False)
        key = (spec.namespace, spec.name)
        if spec.name:
            holder = self._names.get(key)
            if holder is not None:
                if get_if_exists:
                    return self._actors[holder].info(existed=True)
                raise NameTaken(
                    f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by a living actor of class "
                    f"{self._actors[holder].spec.class_name}: use get_actor({spec.name!r}), pass get_if_exists=True, "
                    "or choose another name"
                )
            self._names[key] = spec.actor_id
        actor = self._actors[spec.actor_id] = Actor(spec, job_id)
        info = actor.info(existed=False)
        self.outbox.append(Save(spec.actor_id, new=True))
        expected = self._expected.pop(spec.actor_id, None)
        if expected is not None:
            actor.watchers.update(expected.watchers)
            self._tell(actor)
        self.outbox.append(Place(spec, 0, job_id))
        return info

    def on_watch(self, actor_id: bytes, watcher: Watcher, owner: str = "") -> None:
        """`watcher` wants the state, now and on every change. `owner` is the process that the handle names as the actor's, if
        it lives."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            actor.watchers[watcher] = None
            self.outbox.append(Tell((watcher,), actor.change()))
            return
        change = self._dead.get(actor_id)
        if change is None and owner and self._may_come(actor_id):
            expected = self._expected.get(actor_id)
            if expected is None:
                expected = self._expected[actor_id] = _Expected(owner)
            expected.watchers[watcher] = None
            return
        if change is None:
            cause = "The actor is not known to this session: it ended long ago, or belongs to another session."
            change = ActorChange(actor_id, ActorState.DEAD.value, 0, cause=cause)
        self.outbox.append(Tell((watcher,), change))

    def on_watcher_gone(self, watcher: Watcher) -> None:
        """A watcher has ended."""
        for actor in self._actors.values():
            actor.watchers.pop(watcher, None)
        for actor_id, expected in list(self._expected.items()):
            expected.watchers.pop(watcher, None)
            if not expected.watchers:
                del self._expected[actor_id]

    def on_kill(self, actor_id: bytes, *, no_restart: bool, owner: str = "") -> None:
        """`shoal.kill`. `owner` is as for `on_watch`: an actor that is still to come is dead from now on, and saved as such."""
        actor = self._actors.get(actor_id)
        if actor is None:
            if no_restart and owner and actor_id not in self._dead and self._may_come(actor_id):
                self._end_expected(actor_id, _KILLED)
            return
        if no_restart:
            self._end(actor, _KILLED, StopHow.KILL)
        else:
            self._restart_or_end(actor, _KILLED, StopHow.KILL)

    def on_unreferenced(self, actor_id: bytes) -> None:
        """The last handle is gone."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.spec.detached or actor.draining:
            return
        actor.draining = "its last handle went out of scope"
        self.outbox.append(Save(actor_id))
        if actor.state is ActorState.ALIVE:
            self.outbox.append(Stop(actor_id, actor.incarnation, actor.draining, StopHow.DRAIN))

    def on_owner_gone(self, owner: str, who: str, how: str) -> None:
        """The process that created actors has ended: `who` as in "the driver, pid 12", `how` as in "exited"."""
        for actor in [a for a in self._actors.values() if a.spec.owner == owner]:
            if not actor.spec.detached:
                self._end(actor, f"its owner ({who}) {how}", StopHow.KILL)
        for actor_id, expected in list(self._expected.items()):
            if expected.owner == owner:
                self._end_expected(actor_id, f"its owner ({who}) {how} before it was created")

    def on_job_gone(self, job_id: bytes, reason: str) -> None:
        """A job has ended, with all its actors that are not detached. `reason` is a clause."""
        for actor in [a for a in self._actors.values() if a.job_id == job_id]:
            if not actor.spec.detached:
                self._end(actor, reason, StopHow.EXIT)

    # --- events from nodes ---------------------------------------------------------------------------------------

    def on_placed(self, actor_id: bytes, incarnation: int, address: str, pid: int) -> None:
        """This life has a process."""
        actor = self._current(actor_id, incarnation)
        if actor is not None and not actor.address:
            actor.address = address
            actor.pid = pid
            self.outbox.append(Save(actor_id))
            self._tell(actor)

    def on_started(self, actor_id: bytes, incarnation: int, error: bytes, cause: str) -> None:
        """`__init__` returned, or raised: `error` is the pickled exception, `cause` one line of it."""
        actor = self._current(actor_id, incarnation)
        if actor is None or actor.state is ActorState.ALIVE:
            return
        if error or cause:
            actor.error = error
            self._end(actor, f"its __init__ raised {cause}", StopHow.EXIT)
            return
        self._move(actor, ActorState.ALIVE)
        self._tell(actor)
        if actor.draining:
            self.outbox.append(Stop(actor_id, incarnation, actor.draining, StopHow.DRAIN))

    def on_exiting(self, actor_id: bytes, incarnation: int, cause: str) -> None:
        """The actor's process says that it ends, and why; the end itself follows."""
        actor = self._current(actor_id, incarnation)
        if actor is not None:
            actor.ending = cause
            self.outbox.append(Save(actor_id))

    def on_process_gone(
        self, actor_id: bytes, incarnation: int, cause: str, *, expected: bool
    ) -> None:
        """The process of this life has ended; `cause` is a clause such as "was killed by SIGKILL"."""
        actor = self._current(actor_id, incarnation)
        if actor is None:
            return
        if actor.ending or actor.draining:
            self._end(actor, actor.ending or actor.draining, None)
        elif expected:
            self._end(actor, f"the actor's process {cause}", None)
        else:
            self._restart_or_end(actor, f"the actor's process {cause}", None)

    def on_node_gone(self, placed_there: Iterable[bytes], cause: str) -> None:
        """The node where the present lives of these actors were sent is dead. `cause` is a clause: "its node n-1 died: …"."""
        for actor_id in placed_there:
            actor = self._actors.get(actor_id)
            if actor is None:
                continue
            self._unconfirmed.pop(actor_id, None)
            if actor.ending or (actor.draining and actor.address):
                self._end(actor, actor.ending or actor.draining, None)
            elif actor.address:
                self._restart_or_end(actor, cause, None)
            else:
                # Nobody was told of a process: the same life begins elsewhere.
                self.outbox.append(Place(actor.spec, actor.incarnation, actor.job_id))

    def on_refused(self, actor_id: bytes, incarnation: int, reason: str, kind: str = "") -> None:
        """No process can be had for it, ever. `kind` is as in `ActorChange`."""
        actor = self._current(actor_id, incarnation)
        if actor is not None:
            actor.kind = kind
            self._end(actor, f"it could not be started: {reason}", None)

    def on_group_removed(self, group_id: bytes, reason: str) -> None:
        """A placement group is no more, and nor are the actors in it. `reason` is a clause: "its placement group was removed"."""
        for actor in list(self._actors.values()):
            strategy = actor.spec.placement_shape.strategy
            if isinstance(strategy, InBundle) and strategy.group_id == group_id:
                actor.kind = GROUP_REMOVED
                self._end(actor, reason, StopHow.KILL)

    # --- coming back after a restart of the control store ----------------------------------------------------------

    def restore(
        self,
        living: Iterable[tuple[ActorSpec, LivingActor]],
        dead: Iterable[ActorChange],
        forgotten: Mapping[bytes, bytes],
    ) -> None:
        """What was saved, before any event. Nothing follows from it yet."""
        assert not any((self._actors, self._dead, self._expected))
        # Storages give no order; that of ids is the same every time.
        for spec, record in sorted(living, key=lambda pair: pair[0].actor_id):
            self._actors[spec.actor_id] = Actor.restored(spec, record)
            self._unconfirmed[spec.actor_id] = None
            if spec.name:
                self._names[spec.namespace, spec.name] = spec.actor_id
        self._dead = {c.actor_id: c for c in sorted(dead, key=lambda change: change.actor_id)}
        self._forgotten = dict(sorted(forgotten.items()))

    def on_claim(self, actor_id: bytes, incarnation: int) -> bool:
        """The node where this life was sent says that it has it: in a process, or waiting for one. What became of it meanwhile
        the node reports after this. False: it must end that life, which is over or was never heard of."""
        actor = self._current(actor_id, incarnation)
        if actor is None:
            return False
        if actor_id in self._unconfirmed:
            del self._unconfirmed[actor_id]
            if actor.draining and actor.state is ActorState.ALIVE:
                # Whether the order arrived nobody knows. Given twice, it does no harm.
                self.outbox.append(Stop(actor_id, incarnation, actor.draining, StopHow.DRAIN))
        return True

    def on_claims_over(self) -> None:
        """Nodes that have not come back by now are dead."""
        for actor_id in list(self._unconfirmed):
            actor = self._actors[actor_id]
            if actor.address:
                cause = "was lost: its node did not come back after the control store had restarted"
                self.on_process_gone(actor_id, actor.incarnation, cause, expected=False)
            else:
                # Nobody was told of a process. If there is one, its node will be refused, and end it.
                self.outbox.append(Place(actor.spec, actor.incarnation, actor.job_id))
        self._unconfirmed.clear()

    # --- states --------------------------------------------------------------------------------------------------

    def _current(self, actor_id: bytes, incarnation: int) -> Actor | None:
        """The guard: the actor, if it lives this very life."""
        actor = self._actors.get(actor_id)
        return actor if actor is not None and actor.incarnation == incarnation else None

    def _move(self, actor: Actor, state: ActorState) -> None:
        """The only writer of an actor's state."""
        if state not in MOVES[actor.state]:
            raise InternalError(
                f"actor {actor.spec.actor_id.hex()} ({actor.spec.class_name}, incarnation {actor.incarnation}) cannot go "
                f"from {actor.state.value} to {state.value}"
            )
        actor.state = state
        self.outbox.append(Save(actor.spec.actor_id))

    def _restart_or_end(self, actor: Actor, cause: str, how: StopHow | None) -> None:
        limit = actor.spec.max_restarts
        if actor.draining or actor.ending or not (limit < 0 or actor.restarts_used < limit):
            if limit > 0 and actor.restarts_used >= limit:
                cause += (
                    f", and it had been restarted {limit} times, as often as max_restarts allows"
                )
            self._end(actor, cause, how)
            return
        if how is not None:
            self.outbox.append(Stop(actor.spec.actor_id, actor.incarnation, cause, how))
        self._unconfirmed.pop(actor.spec.actor_id, None)
        actor.restarts_used += 1
        actor.incarnation += 1
        actor.address = ""
        actor.pid = 0
        actor.cause = _sentence(cause)
        self._move(actor, ActorState.RESTARTING)
        self._tell(actor)
        self.outbox.append(Place(actor.spec, actor.incarnation, actor.job_id))

    def _end(self, actor: Actor, cause: str, how: StopHow | None) -> None:
        """The actor is dead: `cause` is a clause; `how` says how to end its process, if it still has one."""
        spec = actor.spec
        if how is not None:
            self.outbox.append(Stop(spec.actor_id, actor.incarnation, cause, how))
        actor.cause = _sentence(cause)
        actor.address = ""
        self._move(actor, ActorState.DEAD)
        self._tell(actor)
        del self._actors[spec.actor_id]
        self._unconfirmed.pop(spec.actor_id, None)
        if spec.name:
            del self._names[spec.namespace, spec.name]
        self._remember(actor.change())

    def _may_come(self, actor_id: bytes) -> bool:
        """Whether an actor of which nothing is remembered may be on its way, and was not dead long ago."""
        return actor_id > self._forgotten.get(prefix_of(actor_id), b"")

    def _end_expected(self, actor_id: bytes, cause: str) -> None:
        """An actor is dead that was never created. `cause` is a clause."""
        expected = self._expected.pop(actor_id, None)
        change = ActorChange(actor_id, ActorState.DEAD.value, 0, cause=_sentence(cause))
        self.outbox.append(Save(actor_id))
        self._remember(change)
        if expected is not None:
            self.outbox.append(Tell(tuple(expected.watchers), change))

    def _remember(self, change: ActorChange) -> None:
        self._dead[change.actor_id] = change
        if len(self._dead) > REMEMBERED:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            process = prefix_of(oldest)
            self._forgotten[process] = max(oldest, self._forgotten.get(process, b""))
            self.outbox += (Save(oldest), SaveForgotten(process))
            if len(self._forgotten) > REMEMBERED:
                process = next(iter(self._forgotten))
                del self._forgotten[process]
                self.outbox.append(SaveForgotten(process))

    def _tell(self, actor: Actor) -> None:
        if actor.watchers:
            self.outbox.append(Tell(tuple(actor.watchers), actor.change()))

    def check(self) -> None:
        """Assert the invariants."""
        for (namespace, name), actor_id in self._names.items():
            spec = self._actors[actor_id].spec
            assert (spec.namespace, spec.name) == (namespace, name)
        named = [a for a in self._actors.values() if a.spec.name]
        assert len(named) == len(self._names)
        for actor_id, actor in self._actors.items():
            assert actor.spec.actor_id == actor_id
            assert actor.state is not ActorState.DEAD
            assert actor_id not in self._dead
            assert actor.incarnation == actor.restarts_used
            assert actor.spec.max_restarts < 0 or actor.restarts_used <= actor.spec.max_restarts
            assert actor.state is not ActorState.ALIVE or actor.address
            assert (actor.state is ActorState.PENDING) <= (actor.incarnation == 0)
        assert self._unconfirmed.keys() <= self._actors.keys()
        for actor_id, expected in self._expected.items():
            assert actor_id not in self._actors
            assert actor_id not in self._dead
            assert expected.watchers
        assert len(self._dead) <= REMEMBERED


def _sentence(clause: str) -> str:
    text = clause.rstrip(".")
    return f"{text[0].upper()}{text[1:]}."
