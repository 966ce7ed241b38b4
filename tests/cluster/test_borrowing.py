"""References and handles on their way over several nodes: whoever has the last one keeps the object, or the actor; then it goes."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, OwnerDiedError
from shoal.runtime import current_process
from tests.api.gates import alive, wait_until

PATIENCE_S = 30
TREASURE = "what is at the end of every chain"

pytestmark = pytest.mark.usefixtures("three")


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


@shoal.remote(num_cpus=0)
class Treasurer:
    """An actor that is passed on by its handle."""

    def open(self) -> str:
        return TREASURE

    def pid(self) -> int:
        return os.getpid()


def follow(thing: Any) -> Any:
    """What is at the end: inside lists, objects, functions and actors, however deep."""
    while True:
        if isinstance(thing, shoal.ObjectRef):
            thing = get(thing)
        elif isinstance(thing, list):
            thing = thing[0]
        elif callable(thing):
            thing = thing()
        elif isinstance(thing, shoal.actor.ActorHandle):
            thing = get(thing.open.remote())
        else:
            return thing


@shoal.remote(num_cpus=0)
class Holder:
    def __init__(self, box: Any = None) -> None:
        self.box = box

    def keep(self, box: Any) -> None:
        self.box = box

    def wrap(self, box: Any) -> Any:
        """An object of this process, with the box inside."""
        return [shoal.put(box)]

    def wrap_own(self) -> None:
        self.box = [shoal.put(self.box)]

    def pass_on(self, other: Any) -> None:
        get(other.keep.remote(self.box))

    def bear(self, number: int) -> Any:
        return Holder.options(**on(number)).remote(self.box)

    def give(self) -> Any:
        return self.box

    def stream(self) -> Iterator[Any]:
        yield self.box

    def read(self) -> Any:
        return follow(self.box)

    def drop(self) -> None:
        self.box = None

    def pid(self) -> int:
        return os.getpid()


@shoal.remote(num_cpus=0.1)
def hand_on(box: Any, to: list[int], last: Any) -> None:
    """From worker to worker, each at another node, and then to an actor."""
    if to:
        get(hand_on.options(**on(to[0])).remote(box, to[1:], last))
    else:
        get(last.keep.remote(box))


# --- ways: each gets what is in the box to somebody at another node, and leaves nobody else with it -----------------------------


def in_an_argument(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    get(a.pass_on.remote(b))
    get(a.drop.remote())
    return b


def in_a_result(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    del box
    get(b.keep.remote(get(a.give.remote())))
    get(a.drop.remote())
    return b


def in_a_result_that_is_an_argument(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    del box
    given = a.give.remote()
    get(a.drop.remote())
    get(b.keep.remote(given))
    return b


def in_a_stream(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    del box
    items = a.stream.options(num_returns="streaming").remote()
    get(b.keep.remote(next(items)))
    get(a.drop.remote())
    return b


def in_an_object(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    get(a.wrap_own.remote())
    return in_an_argument_of(a, b)


def in_an_argument_of(a: Any, b: Any) -> Any:
    get(a.pass_on.remote(b))
    get(a.drop.remote())
    return b


def in_the_state_of_an_actor(a: Any, b: Any, box: Any) -> Any:
    get(a.keep.remote(box))
    del box
    child = get(a.bear.remote(2))
    get(a.drop.remote())
    get(b.keep.remote([child]))
    return child


def in_a_closure(a: Any, b: Any, box: Any) -> Any:
    (thing,) = box
    del box
    return in_an_argument(a, b, [lambda: thing])


def from_worker_to_worker(_a: Any, b: Any, box: Any) -> Any:
    get(hand_on.options(**on(1)).remote(box, [2, 0, 1], b))
    return b


def five_deep(a: Any, b: Any, box: Any) -> Any:
    """Each object around it belongs to another process."""
    for n in range(5):
        box = [shoal.put(box)] if n == 2 else get((a, b)[n % 2].wrap.remote(box))
    return in_an_argument(a, b, box)


WAYS = [
    in_an_argument,
    in_a_result,
    in_a_result_that_is_an_argument,
    in_a_stream,
    in_an_object,
    in_the_state_of_an_actor,
    in_a_closure,
    from_worker_to_worker,
    five_deep,
]


class Case:
    """Something to be passed on: an object of this process, or an actor by its handle."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.box: list[Any] = []
        if kind == "object":
            self.box.append(shoal.put(TREASURE))
            self.object_id = self.box[0].binary()
        else:
            self.box.append(Treasurer.options(**on(0)).remote())
            self.pid = get(self.box[0].pid.remote())

    def take(self) -> list[Any]:
        """What there is; this keeps nothing."""
        box, self.box = self.box, []
        return box

    def is_there(self) -> bool:
        gc.collect()
        if self.kind == "handle":
            return alive(self.pid)
        process = current_process.require()
        with process.lock:
            process.settle()
            return self.object_id in process.objects.entries


@pytest.fixture(scope="module")
def holders(three: Any) -> tuple[Any, Any]:
    return tuple(Holder.options(**on(number)).remote() for number in (1, 2))


@pytest.mark.parametrize("kind", ["object", "handle"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_has_the_last_reference_keeps_it_and_then_it_goes(
    holders: tuple[Any, Any], kind: str, way: Callable[[Any, Any, Any], Any]
) -> None:
    case = Case(kind)
    last = way(*holders, case.take())
    assert case.is_there()
    assert get(last.read.remote()) == TREASURE
    # What reading it has left here and there is gone, too.
    assert get(last.read.remote()) == TREASURE
    get([last.drop.remote(), holders[1].drop.remote()])
    # An actor's arguments are kept for as long as it may have to be made again.
    del last
    wait_until(lambda: not case.is_there(), "nobody has it any more")


@pytest.mark.parametrize("kind", ["object", "handle"])
def test_a_borrower_that_is_killed_has_let_go(holders: tuple[Any, Any], kind: str) -> None:
    case = Case(kind)
    first, second = (Holder.options(**on(number)).remote() for number in (1, 2))
    get(first.keep.remote(case.take()))
    get(first.pass_on.remote(second))
    pids = get([holder.pid.remote() for holder in (first, second)])
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        get(first.read.remote())
    # Who borrowed from the dead is known to the owner.
    assert get(second.read.remote()) == TREASURE
    assert case.is_there()
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: not case.is_there(), "the dead have let go")


def test_an_owner_that_is_killed_is_named_to_whoever_borrowed_from_a_borrower(
    holders: tuple[Any, Any],
) -> None:
    a, b = holders
    owner = Holder.options(**on(1)).remote()
    get(a.keep.remote(get(owner.wrap.remote(TREASURE))))
    get(a.pass_on.remote(b))
    (ref,) = get(a.give.remote())
    assert ref.owner_address() != current_process.require().address
    os.kill(get(owner.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        get(owner.read.remote())
    for read in (lambda: get(b.read.remote()), lambda: get(ref)):
        with pytest.raises(OwnerDiedError, match=f"{ref.hex()}.*SIGKILL"):
            read()
    get([a.drop.remote(), b.drop.remote()])


def test_who_has_an_actor_of_a_dead_creator_is_told_who_that_was(holders: tuple[Any, Any]) -> None:
    a, b = holders
    creator = Holder.options(**on(1)).remote()
    child = get(creator.bear.remote(2))
    get(a.keep.remote([child]))
    get(a.pass_on.remote(b))
    pid = get(child.pid.remote())
    os.kill(get(creator.pid.remote()), signal.SIGKILL)
    wait_until(lambda: not alive(pid), "it goes with who created it")
    with pytest.raises(ActorDiedError, match=r"Its owner .*SIGKILL"):
        get(child.read.remote())
    get([a.drop.remote(), b.drop.remote()])


def test_arguments_of_an_actor_are_kept_for_its_next_life(holders: tuple[Any, Any]) -> None:
    case = Case("object")
    holder = Holder.options(**on(1), max_restarts=1, max_task_retries=1).remote(case.take())
    os.kill(get(holder.pid.remote()), signal.SIGKILL)
    assert get(holder.read.remote()) == TREASURE
    del holder
    wait_until(lambda: not case.is_there(), "no life needs them any more")
