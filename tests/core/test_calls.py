"""The calls to one actor, rule by rule; then random histories of an actor that restarts, dies, and answers late."""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.calls import ActorCalls
from shoal.core.tasks import State, Task
from shoal.errors import InternalError
from tests.core.lives import Life


class Caller:
    """The calls of one process to one actor, and what has left for it."""

    def __init__(self, out_of_order: bool = False, connected: bool = True) -> None:
        self.calls = ActorCalls(b"actor", self._push, out_of_order)
        self.sent: list[str] = []
        if connected:
            self.calls.connected(object())

    def _push(self, calls: ActorCalls, task: Task) -> None:
        assert calls is self.calls
        assert task.state is State.PUSHED
        self.sent.append(task.task_id.decode())

    def call(self, name: str, unready: int = 0, retries: int = 0) -> Task:
        task = Task(name.encode(), None, self.calls, b"", (), retries)
        task.unready = unready
        self.calls.submit(task)
        self.calls.check()
        return task

    def took(self) -> list[str]:
        self.calls.check()
        sent, self.sent = self.sent, []
        return sent


def test_calls_leave_at_once_and_finish() -> None:
    caller = Caller()
    one, two = caller.call("one"), caller.call("two")
    assert caller.took() == ["one", "two"]
    assert caller.calls.pending == 2
    caller.calls.finished(one, 10)
    assert (one.state, one.lane) == (State.FINISHED, None)
    assert (two.state, two.lane) == (State.PUSHED, caller.calls)
    assert caller.calls.pending == 1


def test_calls_wait_for_the_process_in_their_order() -> None:
    caller = Caller(connected=False)
    for name in "abc":
        caller.call(name)
    assert caller.took() == []
    caller.calls.connected(object())
    assert caller.took() == ["a", "b", "c"]


def test_a_call_whose_arguments_are_unknown_holds_up_those_behind_it() -> None:
    caller = Caller()
    first, second = caller.call("first", unready=2), caller.call("second", unready=1)
    caller.call("third")
    caller.calls.dependency_ready(second)
    caller.calls.dependency_ready(first)
    assert caller.took() == []
    caller.calls.dependency_ready(first)
    assert caller.took() == ["first", "second", "third"]


def test_an_actor_that_takes_calls_out_of_order_gets_them_as_they_are_ready() -> None:
    caller = Caller(out_of_order=True)
    first, second = caller.call("first", unready=1), caller.call("second", unready=1)
    caller.call("third")
    assert caller.took() == ["third"]
    caller.calls.dependency_ready(second)
    caller.calls.dependency_ready(first)
    assert caller.took() == ["second", "first"]
    assert not caller.calls.queue


def test_what_became_ready_while_the_actor_was_away_leaves_when_it_is_back() -> None:
    caller = Caller(out_of_order=True, connected=False)
    first, _ = caller.call("first", unready=1), caller.call("second", unready=1)
    caller.calls.dependency_ready(first)
    caller.calls.connected(object())
    assert caller.took() == ["first"]


def test_waiting_calls_do_not_look_at_one_another() -> None:
    # Thousands may wait for as many tasks: what each costs must not grow with their number.
    class Watched(Task):
        __slots__ = ()
        looks = 0

        def __getattribute__(self, name: str) -> object:
            Watched.looks += name == "state"
            return super().__getattribute__(name)

    caller = Caller(out_of_order=True)
    tasks = [Watched(bytes([number]), None, caller.calls, b"", (), 0) for number in range(100)]
    for task in tasks:
        task.unready = 1
        caller.calls.submit(task)
    for task in tasks:
        caller.calls.dependency_ready(task)
    assert len(caller.sent) == 100
    assert Watched.looks <= 3 * 100


# --- restarts ------------------------------------------------------------------------------------------------------------


def test_after_a_restart_calls_with_retries_are_made_again_in_their_order() -> None:
    caller = Caller()
    once, again, forever = (
        caller.call("once"),
        caller.call("again", retries=1),
        caller.call("forever", retries=-1),
    )
    caller.took()
    assert caller.calls.lost() == [once]
    late = caller.call("late")
    assert caller.took() == []
    assert (again.attempt, again.retries) == (1, 0)
    assert (forever.attempt, forever.retries) == (1, -1)
    caller.calls.connected(object())
    assert caller.took() == ["again", "forever", "late"]
    assert caller.calls.lost() == [again, late]


def test_a_call_that_had_not_left_survives_a_restart_without_retries() -> None:
    caller = Caller()
    waiting = caller.call("waiting", unready=1)
    assert caller.calls.lost() == []
    caller.calls.dependency_ready(waiting)
    caller.calls.connected(object())
    assert caller.took() == ["waiting"]
    assert waiting.attempt == 0


def test_a_cancelled_call_is_not_made_again() -> None:
    caller = Caller()
    task = caller.call("a", retries=3)
    assert caller.calls.cancel(task) is State.PUSHED
    assert caller.calls.lost() == [task]


def test_an_exception_that_is_retried_is_a_new_call() -> None:
    caller = Caller()
    task = caller.call("a", retries=1)
    caller.call("b")
    caller.calls.finished(task, 10)
    caller.calls.retry(task)
    assert caller.took() == ["a", "b", "a"]
    assert task.attempt == 1


# --- the end -------------------------------------------------------------------------------------------------------------


def test_when_the_actor_dies_every_call_fails_once() -> None:
    caller = Caller()
    sent = caller.call("sent", retries=3)
    waiting = caller.call("waiting", unready=1)
    behind = caller.call("behind")
    cancelled = caller.call("cancelled")
    caller.calls.cancel(cancelled)
    assert caller.calls.dead("its node died", b"") == [sent, waiting, behind]
    assert caller.calls.dead("its node died", b"") == []
    assert caller.calls.pending == 0
    caller.calls.dependency_ready(waiting)
    assert caller.took() == ["sent"]


def test_a_dead_actor_takes_no_calls() -> None:
    caller = Caller()
    caller.calls.dead("it was killed", b"")
    task = Task(b"a", None, caller.calls, b"", (), 3)
    assert not caller.calls.submit(task)
    assert task.state is State.FINISHED
    assert caller.took() == []


# --- cancelling ----------------------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_in_time_is_never_made_and_lets_the_next_one_go() -> None:
    caller = Caller()
    first = caller.call("first", unready=1)
    caller.call("second")
    assert caller.calls.cancel(first) is State.WAITING
    assert caller.calls.cancel(first) is State.FINISHED
    assert caller.took() == ["second"]
    caller.calls.dependency_ready(first)
    assert caller.took() == []


def test_cancelled_calls_are_not_pending() -> None:
    caller = Caller(connected=False)
    tasks = [caller.call(name) for name in "abc"]
    for task in tasks[:2]:
        caller.calls.cancel(task)
    assert caller.calls.pending == 1
    caller.calls.connected(object())
    assert caller.took() == ["c"]
    assert caller.calls.pending == 1


def test_check_sees_a_record_that_contradicts_itself() -> None:
    caller = Caller()
    task = caller.call("a")
    task.lane = None
    with pytest.raises(InternalError, match="does not know"):
        caller.calls.check()
    task.lane = caller.calls
    caller.calls.ended = 1
    with pytest.raises(InternalError, match="have ended"):
        caller.calls.check()
    caller.calls.ended = 0
    caller.calls.state = "DEAD"
    with pytest.raises(InternalError, match="a dead actor has 1 pending"):
        caller.calls.check()


# --- random histories ----------------------------------------------------------------------------------------------------


class World:
    """One caller and an actor whose incarnations come and go. Calls and replies take their time, in their order."""

    def __init__(self, seed: int, out_of_order: bool) -> None:
        self.rng = random.Random(seed)
        self.calls = ActorCalls(b"actor", self.push, out_of_order)
        self.lives: dict[Task, Life] = {}
        self.waiting: list[Task] = []
        self.calls_on_their_way: deque[Task] = deque()
        self.replies_on_their_way: deque[Task] = deque()
        self.newest_begun = 0
        self.numbers = itertools.count(1)

    def submit(self) -> None:
        number, retries = next(self.numbers), self.rng.choice([0, 0, 1, 3, -1])
        task = Task(number.to_bytes(4, "big"), None, self.calls, b"", (), retries)
        task.unready = self.rng.choice([0, 0, 0, 1, 2])
        life = self.lives[task] = Life(retries, number)
        if not self.calls.submit(task):
            life.ends("dead")
        else:
            self.waiting += [task] * task.unready

    def push(self, _calls: ActorCalls, task: Task) -> None:
        assert not task.unready
        assert not self.lives[task].end
        self.calls_on_their_way.append(task)

    def ready(self) -> None:
        if self.waiting:
            self.calls.dependency_ready(self.waiting.pop(self.rng.randrange(len(self.waiting))))

    def cancel(self) -> None:
        tasks = [t for t, life in self.lives.items() if not life.end and not t.cancelled]
        if tasks:
            task = self.rng.choice(tasks)
            if self.calls.cancel(task) is not State.PUSHED:
                self.lives[task].ends("cancelled")

    def run(self) -> None:
        if self.calls_on_their_way:
            task = self.calls_on_their_way.popleft()
            life = self.lives[task]
            life.begun += 1
            if not self.calls.out_of_order:
                assert life.number > self.newest_begun, (
                    "calls ran in another order than they were made"
                )
            self.newest_begun = life.number
            self.replies_on_their_way.append(task)

    def reply(self) -> None:
        if self.replies_on_their_way:
            task = self.replies_on_their_way.popleft()
            self.calls.finished(task, 10)
            self.lives[task].ends("done")

    def connect(self) -> None:
        if self.calls.connection is None and self.calls.state != "DEAD":
            self.calls.connected(object())

    def restart(self) -> None:
        self.calls_on_their_way.clear()
        self.replies_on_their_way.clear()
        self.newest_begun = 0
        for task in self.calls.lost():
            self.lives[task].ends("cancelled" if task.cancelled else "lost")

    def die(self) -> None:
        if self.rng.random() < 0.1:
            self.calls_on_their_way.clear()
            self.replies_on_their_way.clear()
            for task in self.calls.dead("it was killed", b""):
                self.lives[task].ends("dead")

    def walk(self, steps: int) -> None:
        moves = [
            *[self.submit] * 6,
            *[self.run] * 6,
            *[self.reply] * 5,
            *[self.ready] * 4,
            *[self.connect] * 2,
            self.cancel,
            self.restart,
            self.die,
        ]
        for _ in range(steps):
            self.rng.choice(moves)()
            self.calls.check()
            assert self.calls.pending == sum(not life.end for life in self.lives.values())

    def finish(self) -> None:
        """Nothing bad happens any more."""
        self.connect()
        for task in self.waiting:
            self.calls.dependency_ready(task)
        while self.calls_on_their_way or self.replies_on_their_way:
            self.run()
            self.reply()

    def assert_that_all_ended(self) -> None:
        """Every call in one of the ways that it may."""
        self.calls.check()
        for task, life in self.lives.items():
            life.assert_that_it_ended(task)
            if life.retries >= 0:
                assert life.begun <= 1 + life.retries


@pytest.mark.parametrize("out_of_order", [False, True], ids=["in-order", "out-of-order"])
@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_every_call_ends_once_and_in_order(out_of_order: bool, seed: int) -> None:
    world = World(seed, out_of_order)
    world.walk(steps=100)
    world.finish()
    world.assert_that_all_ended()
