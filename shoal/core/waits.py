"""Why tasks and calls wait, as the process tells it that submitted them.

Each answer is one step of an explanation: what the task waits for, and where to ask on if that waits for something itself (another task,
a request for a worker, an actor). Nothing is kept for this while nobody asks: it is read off the tables of tasks and calls, so *since
when* is told by those who have a clock anyhow, the nodes and the workers.

`kind` of a `Reason` is one of these words:

| word | what is waited for |
|---|---|
| dependency | an argument that is not there yet |
| memory | a pause, since its worker was ended when memory was short |
| resource | amounts that others have |
| nowhere | a node that does not exist: none could serve it even if it were idle |
| turn | others that were there before |
| worker start | a process that is being started |
| environment | the same, in a runtime environment of its own |
| processes | the limit for processes of the node |
| placement group | the reservation of a group |
| actor | an actor that does not run yet |
| dead | nothing any more |
| calls | earlier calls of the same actor |
| running | nothing: it runs, or was sent to a process and did not come back yet |
| lost | somebody who does not answer |

Pure; called with the runtime's lock held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.core.calls import ActorCalls
from shoal.core.lanes import SchedulingClass
from shoal.core.resources import amounts_text
from shoal.core.tasks import State, Task
from shoal.ids import task_of
from shoal.messages.placement import GroupInfo
from shoal.messages.state import ActorRow, AskActor, AskRequest, AskWhy, Follow, Reason

if TYPE_CHECKING:
    from shoal.core.references import Entry

_MOST_FOLLOWED: Final = 3
"""Dependencies that are followed; of the others it is only said how many they are."""


def short(id_: bytes) -> str:
    """An id for people: what numbers the results of a task is left out."""
    return id_.hex()[:26]


def name_of(task: Task) -> str:
    """What to call a task."""
    if task.name:
        return task.name
    if task.function is None:
        link: ActorCalls = task.queue
        return f"{link.class_name}.{task.method}" if link.class_name else task.method
    return task.function.name


def state_of(task: Task) -> str:
    """The state of a task, in the words that users of such systems know."""
    if task.state is State.FINISHED:
        return "FINISHED"
    if task.state is State.HERE:
        return "RUNNING"
    if task.state is State.PUSHED:
        return "SUBMITTED_TO_WORKER"
    if task.unready:
        return "PENDING_ARGS_AVAIL"
    if task.function is None and task.queue.connection is not None:
        return "PENDING_ACTOR_TASK_ORDERING_OR_CONCURRENCY"
    return "PENDING_NODE_ASSIGNMENT"


def why_task(task: Task, address: str, node_id: bytes) -> Reason:
    """Why a task is not finished. `address` and `node_id` are those of this process, its owner."""
    subject = f"{name_of(task)}() ({short(task.task_id)})"
    if task.state is State.FINISHED:
        return Reason(subject, "running", "it has finished.")
    if task.unready:
        return _why_unready(subject, task)
    if task.state is State.HERE:
        return Reason(subject, "running", "it runs in the process that submitted it.", node_id)
    if task.function is None:
        return _why_call(subject, task, task.queue)
    if task.lane is not None:
        return _why_pushed(subject, task)
    if task.state is State.WAITING and hasattr(task, "shortages"):
        count = task.shortages.count
        times = "once" if count == 1 else f"{count} times"
        text = f"its worker was ended {times} because memory was short; it pauses before it is tried again."
        return Reason(subject, "memory", text, node_id)
    return _why_queued(subject, task, task.queue, address, node_id)


def _why_unready(subject: str, task: Task) -> Reason:
    missing = [entry for _, entry in task.deps or () if entry.value is None]
    told = [f"object {short(entry.object_id)}, {_maker(entry)}" for entry in missing]
    more = len(told) - _MOST_FOLLOWED
    text = "; ".join(told[:_MOST_FOLLOWED]) + (f"; and {more} more" if more > 0 else "")
    count = "an argument" if len(missing) == 1 else f"{len(missing)} arguments"
    makers = {task_of(entry.object_id) for entry in missing[:_MOST_FOLLOWED]}
    follow = [Follow(AskWhy(task_id.hex())) for task_id in sorted(makers)]
    since_ns = getattr(task, "waits_since_ns", 0)
    text = f"it waits for {count}: {text}."
    return Reason(subject, "dependency", text, since_ns=since_ns, follow=follow)


def _maker(entry: Entry) -> str:
    task = entry.task
    if isinstance(task, Task):
        return f"which {name_of(task)}() makes"
    return f"which belongs to the process {entry.owner}" if entry.owner else "which nobody makes"


def _why_call(subject: str, task: Task, link: ActorCalls) -> Reason:
    actor = f"{link.class_name or 'its actor'} ({short(link.actor_id)})"
    led_on = [Follow(AskWhy(link.actor_id.hex()))]
    if task.lane is not None and link.state not in {"ALIVE", "DEAD"}:
        text = f"it was sent to its actor {actor}, which is {link.state}."
        return Reason(subject, "actor", text, follow=led_on)
    if task.lane is not None:
        ahead = _ahead(list(link.inflight), task)
        first = "" if ahead else " and is the first of those that have no answer"
        behind = f", behind {ahead} earlier calls of this process" if ahead else first
        text = f"it was sent to the actor {actor}, pid {link.pid}{behind}; it has not returned."
        return Reason(subject, "calls" if ahead else "running", text, ahead=ahead)
    if link.connection is None:
        text = f"its actor {actor} is {link.state}."
        return Reason(subject, "actor", text, follow=led_on)
    waiting = [other for other in link.queue if other.state is not State.FINISHED]
    ahead = next((index for index, other in enumerate(waiting) if other is task), 0)
    head = waiting[0] if waiting else task
    text = f"calls of the actor {actor} leave in their order, and {ahead} of this process come before it."
    follow = [Follow(AskWhy(head.task_id.hex()))] if head is not task else []
    return Reason(subject, "calls", text, ahead=ahead, follow=follow)


def _ahead(order: list[bytes], task: Task) -> int:
    return order.index(task.task_id) if task.task_id in order else 0


def _why_pushed(subject: str, task: Task) -> Reason:
    lane = task.lane
    ahead = _ahead(list(lane.inflight), task)
    if ahead:
        text = f"it was sent to the worker with pid {lane.pid}, where {ahead} tasks run before it."
        return Reason(subject, "turn", text, ahead=ahead)
    text = f"it was sent to the worker with pid {lane.pid}, and has not returned."
    return Reason(subject, "running", text, ahead=0)


def _why_queued(
    subject: str, task: Task, queue: SchedulingClass, address: str, node_id: bytes
) -> Reason:
    needs = amounts_text(queue.shape.resources)
    ahead = 0
    for other in queue.queue:
        if other is task:
            break
        ahead += other.state is State.QUEUED
    others = f"{ahead} tasks of its kind are before it in the queue of its owner" if ahead else ""
    busy = len(queue.lanes)
    leased = f"tasks of its kind have {busy} workers" if busy else ""
    rest = "".join(f"; {text}" for text in (others, leased) if text)
    follow = [Follow(AskRequest(address, req), node_id) for req in list(queue.requests)[:1]]
    return Reason(
        subject,
        "resource" if follow else "turn",
        f"it waits for a worker, and asks for {needs}{rest}.",
        node_id,
        ahead=ahead,
        follow=follow,
    )


# --- what the control store knows -----------------------------------------------------------------------------------


def why_actor(row: ActorRow) -> Reason:
    """Why an actor does not run, if it does not."""
    name = f" {row.name!r}" if row.name else ""
    subject = f"the actor{name} of class {row.class_name or '?'} ({short(row.actor_id)})"
    since = row.since_ns
    if row.state == "DEAD":
        return Reason(subject, "dead", f"it is dead. {row.cause}", row.node_id, since)
    if row.state == "ALIVE":
        text = f"it is alive, in the process with pid {row.pid}."
        return Reason(subject, "running", text, row.node_id, since)
    again = ""
    if row.state == "RESTARTING":
        times = "once" if row.incarnation == 1 else f"{row.incarnation} times"
        again = f" It has ended {times} and is to live again. The last time: {row.cause}"
    if row.waits:
        return Reason(subject, "nowhere", f"{row.waits}{again}", since_ns=since)
    if row.address:
        text = f"it has a process, pid {row.pid}, which gets its arguments or runs its __init__.{again}"
        return Reason(subject, "running", text, row.node_id, since)
    follow = [Follow(AskActor(row.actor_id), row.node_id)] if row.node_id else []
    text = f"it was sent to a node, where it waits for a worker.{again}"
    return Reason(subject, "resource", text, row.node_id, since, follow=follow)


def why_group(info: GroupInfo) -> Reason:
    """Why a placement group is not reserved, if it is not."""
    record = info.record
    name = f" {record.spec.name!r}" if record.spec.name else ""
    subject = f"the placement group{name} ({record.spec.group_id.hex()[:16]})"
    if record.state == "REMOVED":
        return Reason(subject, "dead", f"it was removed. {record.cause}".rstrip())
    if record.state == "CREATED" and not info.waits:
        return Reason(subject, "running", "it is reserved.")
    there = sum(1 for place in record.places if place)
    text = info.waits or "its bundles are being reserved."
    return Reason(
        subject,
        "placement group",
        f"{there} of {len(record.spec.bundles)} bundles are reserved; {text}",
    )
