"""What there is in a cluster, and why something waits: tasks, actors, objects, nodes, workers, jobs, placement groups.

Every function takes `address`: host and port of a cluster, "auto" for the newest on this machine; None is the session of this program, or
(if it has none) as "auto". So a program needs no `init` to look at a cluster; like `shoal status` it asks the control store.

The answers are a picture of a moment that is never quite the same everywhere, since every process is asked by itself. Nobody keeps records
for the sake of these functions: what a process does not know any more, and what processes have forgotten that were killed, is not shown.
What was left out or not answered raises `StateApiError`, or (with `raise_on_missing_output=False`) a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from shoal.api.actors import ActorHandle
from shoal.api.groups import PlacementGroup
from shoal.errors import ShoalError
from shoal.runtime import current_process
from shoal.runtime.asking import Member, Questions, visit
from shoal.runtime.refs import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.util.records import (
    MOST,
    ActorState,
    Found,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    Record,
    TaskState,
    WorkerState,
)
from shoal.util.summaries import actor_summary, object_summary, task_summary
from shoal.util.tables import (
    actor_states,
    job_states,
    node_states,
    object_states,
    placement_group_states,
    task_states,
    worker_states,
)
from shoal.util.why import Explanation, explain

__all__ = [
    "ActorState",
    "Explanation",
    "JobState",
    "NodeState",
    "ObjectState",
    "PlacementGroupState",
    "StateApiError",
    "TaskState",
    "WorkerState",
    "get_actor",
    "get_job",
    "get_node",
    "get_objects",
    "get_placement_group",
    "get_task",
    "get_worker",
    "list_actors",
    "list_jobs",
    "list_nodes",
    "list_objects",
    "list_placement_groups",
    "list_tasks",
    "list_workers",
    "summarize_actors",
    "summarize_objects",
    "summarize_tasks",
    "why",
]

R = TypeVar("R", bound=Record)
Filter = tuple[str, str, Any]


class StateApiError(ShoalError):
    """Something is missing in an answer; says what."""


@contextmanager
def asking(address: str | None, timeout: float) -> Iterator[Questions]:
    """Whom to ask."""
    if timeout <= 0:
        raise ValueError(f"timeout is in seconds and positive, not {timeout!r}")
    if address is None:
        current_process.refuse_forked()
    process = current_process.process
    if address is None and process is not None:
        yield Questions(Member(process, timeout), timeout)
    else:
        with visit(address) as asker:
            yield Questions(asker, timeout)


# --- lists ----------------------------------------------------------------------------------------------------------


def list_actors(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ActorState]:
    """The actors that live, and those that have died lately.

    Args:
        address: See the module.
        filters: Only those of which all of this is so: (column, "=" or "!=", value). Text is compared regardless of case.
        limit: So many at most, up to 10,000. That there are more is a warning.
        timeout: Seconds to wait for an answer.
        detail: All columns; else those in the `DETAILS` of the record are None.
        raise_on_missing_output: Whether it is an error, not a warning, if somebody did not answer, or left something out.

    Raises:
        ValueError: an argument is wrong.
        StateApiError: something is missing.
        ConnectionError: there is no such cluster.
    """
    with asking(address, timeout) as questions:
        found = actor_states(questions)
    return chosen(ActorState, found, filters, limit, detail, raise_on_missing_output)


def list_tasks(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[TaskState]:
    """The tasks and calls that are not finished, then the latest that are, as far as the processes remember. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = task_states(questions)
    return chosen(TaskState, found, filters, limit, detail, raise_on_missing_output)


def list_objects(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ObjectState]:
    """The objects that drivers and workers own or borrow: a row for each process that knows an object. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = object_states(questions)
    return chosen(ObjectState, found, filters, limit, detail, raise_on_missing_output)


def list_nodes(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[NodeState]:
    """The nodes that live, and those that have died lately. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = node_states(questions)
    return chosen(NodeState, found, filters, limit, detail, raise_on_missing_output)


def list_jobs(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[JobState]:
    """The jobs (a driver each) that run, and those that have ended lately. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = job_states(questions)
    return chosen(JobState, found, filters, limit, detail, raise_on_missing_output)


def list_workers(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[WorkerState]:
    """The drivers and workers that live, then those that have ended lately. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = worker_states(questions)
    return chosen(WorkerState, found, filters, limit, detail, raise_on_missing_output)


def list_placement_groups(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[PlacementGroupState]:
    """The placement groups that are not forgotten. See `list_actors`."""
    with asking(address, timeout) as questions:
        found = placement_group_states(questions)
    return chosen(PlacementGroupState, found, filters, limit, detail, raise_on_missing_output)


def chosen(
    kind: type[R],
    found: Found[R],
    filters: Sequence[Filter] | None,
    limit: int,
    detail: bool,
    must: bool,
) -> list[R]:
    """What is to be shown of what was found; what is missing is said (see `list_actors`)."""
    if not 0 < limit <= MOST:
        raise ValueError(
            f"limit is from 1 to {MOST:,}, not {limit!r}: use filters to find what you look for"
        )
    _complete(found, must)
    states = found.states
    for one in filters or ():
        matches = _matcher(kind, one)
        states = [state for state in states if matches(state)]
    if len(states) > limit:
        warnings.warn(
            f"{limit:,} of {len(states):,} are shown: raise limit (up to {MOST:,}), or use filters",
            stacklevel=3,
        )
        states = states[:limit]
    if not detail:
        for state in states:
            state.hide_details()
    return states


def _complete(found: Found[R], must: bool) -> None:
    """Say what is missing."""
    missing = []
    if found.silent:
        missing.append(
            f"no answer in time from {', '.join(found.silent)}: a longer timeout may help"
        )
    if found.left_out:
        missing.append(
            f"{found.left_out:,} more were left out: no more than {MOST:,} are looked at"
        )
    if missing:
        text = "; ".join(missing)
        if must:
            raise StateApiError(f"{text}. raise_on_missing_output=False shows what there is")
        warnings.warn(f"something is missing: {text}", stacklevel=4)


def _matcher(kind: type[R], one: Filter) -> Callable[[R], bool]:
    if len(one) != 3:
        raise ValueError(f'a filter is (column, "=" or "!=", value), not {one!r}')
    column, predicate, value = one
    if predicate not in {"=", "!="}:
        raise ValueError(f'a filter compares with "=" or "!=", not {predicate!r}, in {one!r}')
    if column not in kind.columns():
        raise ValueError(
            f"there is no column {column!r} to filter by: {kind.__name__} has {', '.join(kind.columns())}"
        )
    wanted = str(value).lower()

    def matches(state: R) -> bool:
        found = state[column]
        return (found == value or str(found).lower() == wanted) == (predicate == "=")

    return matches


# --- one of them ----------------------------------------------------------------------------------------------------


def get_actor(id: str, address: str | None = None, timeout: float = 30) -> ActorState | None:
    """The actor with this id, with all details; None if nobody knows it."""
    return _one(list_actors(address, [("actor_id", "=", id)], MOST, timeout, detail=True))


def get_task(
    id: str,
    address: str | None = None,
    timeout: float = 30,
) -> TaskState | None:
    """The task with this id, with all details; None if nobody knows it. Processes that do not answer are passed over."""
    return _one(list_tasks(address, [("task_id", "=", id)], MOST, timeout, True, False))


def get_objects(
    id: str,
    address: str | None = None,
    timeout: float = 30,
) -> list[ObjectState]:
    """What each process knows of the object with this id."""
    return list_objects(address, [("object_id", "=", id)], MOST, timeout, True, False)


def get_node(id: str, address: str | None = None, timeout: float = 30) -> NodeState | None:
    """The node with this id; None if nobody knows it."""
    return _one(list_nodes(address, [("node_id", "=", id)], MOST, timeout, detail=True))


def get_job(id: str, address: str | None = None, timeout: float = 30) -> JobState | None:
    """The job with this id; None if nobody knows it."""
    return _one(list_jobs(address, [("job_id", "=", id)], MOST, timeout, detail=True))


def get_worker(id: str, address: str | None = None, timeout: float = 30) -> WorkerState | None:
    """The worker with this id; None if nobody knows it."""
    return _one(list_workers(address, [("worker_id", "=", id)], MOST, timeout, True, False))


def get_placement_group(
    id: str,
    address: str | None = None,
    timeout: float = 30,
) -> PlacementGroupState | None:
    """The placement group with this id; None if nobody knows it."""
    return _one(
        list_placement_groups(
            address, [("placement_group_id", "=", id)], MOST, timeout, detail=True
        )
    )


def _one(found: list[R]) -> R | None:
    return found[0] if found else None


# --- summaries ------------------------------------------------------------------------------------------------------


def summarize_tasks(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """How many tasks are in which state, by function."""
    with asking(address, timeout) as questions:
        found = task_states(questions)
    _complete(found, raise_on_missing_output)
    return {"cluster": task_summary(found.states)}


def summarize_actors(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """How many actors are in which state, by class."""
    with asking(address, timeout) as questions:
        found = actor_states(questions)
    _complete(found, raise_on_missing_output)
    return {"cluster": actor_summary(found.states)}


def summarize_objects(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """How many objects their owners have, in which state, and of which size, by the task that made them."""
    with asking(address, timeout) as questions:
        found = object_states(questions)
    _complete(found, raise_on_missing_output)
    return {"cluster": object_summary(found.states)}


# --- why ------------------------------------------------------------------------------------------------------------


def why(
    id: str | ObjectRef[Any] | ActorHandle | PlacementGroup,
    address: str | None = None,
    timeout: float = 30,
) -> Explanation:
    """Why a task, an actor or a placement group waits (or an object: the task that makes it): step by step, until something is found
    that waits for nothing else. `str()` of the answer is for people.

    Args:
        id: In hexadecimal digits; the first ones are enough if no other id begins with them. Or what stands for one: a reference, an
            actor's handle, a placement group.
        address: See the module.
        timeout: Seconds to wait for each of the answers.

    Raises:
        ValueError: it is no id, or nobody knows it; says what to do.
        TypeError: it is something else.
        ConnectionError: there is no such cluster.
    """
    with asking(address, timeout) as questions:
        return explain(questions, _digits(id))


def _digits(named: object) -> str:
    match named:
        case str():
            return named
        case ObjectRef():
            return named.hex()
        case ActorHandle():
            return named._actor_id.hex()
        case PlacementGroup():
            return named.id.hex()
        case ObjectRefGenerator():
            return named.completed().hex()
    raise TypeError(
        f"why() takes an id in hexadecimal digits, a reference, an actor's handle or a placement group, not a {type(named).__name__}"
    )
