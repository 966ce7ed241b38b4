"""`ActorPool`: spreads calls over a fixed set of actors, each with one call at a time.

A call occupies its actor until its result is taken from the pool, not merely until it is finished. So there are never more
results waiting than actors, however slowly they are taken; the price is that `get_next`, which waits for the oldest, may
leave actors idle that `get_next_unordered` would use.

A pool belongs to one process and to one thread of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from shoal.api.actors import ActorHandle
from shoal.api.objects import get, wait
from shoal.errors import ActorDiedError, GetTimeoutError
from shoal.runtime.refs import ObjectRef

V = TypeVar("V")


class _Call:
    """A call that runs, or whose result was not taken yet."""

    __slots__ = ("actor", "result")

    def __init__(self, actor: ActorHandle, result: Any) -> None:
        self.actor = actor
        self.result = result


class ActorPool(Generic[V]):
    """A set of actors that share work.

    Each piece of work is a function that makes a call and returns its reference, with a value::

        pool = ActorPool([Worker.remote() for _ in range(4)])
        for result in pool.map(lambda actor, value: actor.double.remote(value), range(100)):
            print(result)

    An actor that died is taken out of the pool when its result is taken, which raises `ActorDiedError`.
    """

    def __init__(self, actors: Iterable[ActorHandle]) -> None:
        self._idle: deque[ActorHandle] = deque()
        # By the (first) reference of each result, in the order of submission.
        self._calls: dict[ObjectRef[Any], _Call] = {}
        self._waiting: deque[tuple[Callable[[ActorHandle, V], Any], V]] = deque()
        for actor in actors:
            self.push(actor)

    # --- work in -------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[[ActorHandle, V], Any], value: V) -> None:
        """Have `fn(actor, value)` called with an idle actor: now, or when there is one.

        Raises:
            TypeError: `fn` did not return the reference of a call.
        """
        if self._idle and not self._waiting:
            self._start(fn, value)
        else:
            self._waiting.append((fn, value))

    def map(self, fn: Callable[[ActorHandle, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """The results for all `values`, in their order. Results of earlier submissions that nobody took are dropped."""
        return self._map(fn, values, self.get_next)

    def map_unordered(
        self, fn: Callable[[ActorHandle, V], Any], values: Iterable[V]
    ) -> Iterator[Any]:
        """The results for all `values`, as they are finished. Otherwise as `map`."""
        return self._map(fn, values, self.get_next_unordered)

    def _map(
        self, fn: Callable[[ActorHandle, V], Any], values: Iterable[V], take: Callable[[], Any]
    ) -> Iterator[Any]:
        # Not in the generator: the work begins when `map` is called, and not when its first result is wanted.
        self._forget()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield take()

        return results()

    # --- results out ---------------------------------------------------------------------------------------------

    def has_next(self) -> bool:
        """Whether there are results to take, now or later."""
        return bool(self._calls or self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The oldest result that was not taken yet.

        Args:
            timeout: Seconds to wait at most.
            ignore_if_timedout: When the time is up, give that result up and return None; its actor works on.

        Raises:
            StopIteration: there is no work left.
            TimeoutError: the time was up; the result can be taken later.
            TaskError: the call failed.
        """
        self._check_work()
        return self._take([next(iter(self._calls))], timeout, ignore_if_timedout)

    def get_next_unordered(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """The result that is finished next, or first among those that are. Otherwise as `get_next`."""
        self._check_work()
        return self._take(list(self._calls), timeout, ignore_if_timedout)

    def _take(self, keys: list[ObjectRef[Any]], timeout: float | None, ignore: bool) -> Any:
        ready, _ = wait(keys, timeout=timeout)
        if not ready:
            if not ignore:
                raise GetTimeoutError(
                    f"no result of the pool was there after {timeout} s; {len(self._calls)} calls run and "
                    f"{len(self._waiting)} wait for an actor"
                )
            call = self._calls.pop(keys[0])
            self._give_back(call.actor)
            return None
        call = self._calls.pop(ready[0])
        try:
            result = get(call.result)
        except ActorDiedError:
            # There is no more to expect of this one; the others go on.
            raise
        except BaseException:
            self._give_back(call.actor)
            raise
        self._give_back(call.actor)
        return result

    def _check_work(self) -> None:
        if self._calls:
            return
        if self._waiting:
            raise RuntimeError(
                f"{len(self._waiting)} submissions wait for an actor, and the pool has none left: they died or were "
                "taken out by pop_idle(); add one with push()"
            )
        raise StopIteration("all results of the pool have been taken")

    # --- actors --------------------------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether an actor is idle."""
        return bool(self._idle)

    def pop_idle(self) -> ActorHandle | None:
        """Take an idle actor out of the pool; None if all are busy."""
        return self._idle.popleft() if self._idle else None

    def push(self, actor: ActorHandle) -> None:
        """Put an actor into the pool.

        Raises:
            ValueError: it is in the pool already.
            TypeError: it is not the handle of an actor.
        """
        if not isinstance(actor, ActorHandle):
            raise TypeError(
                f"a pool takes handles of actors, not {actor!r}; make actors with .remote()"
            )
        if actor in self._idle or any(call.actor == actor for call in self._calls.values()):
            raise ValueError(f"{actor!r} is in the pool already")
        self._give_back(actor)

    def _give_back(self, actor: ActorHandle) -> None:
        self._idle.append(actor)
        if self._waiting:
            self._start(*self._waiting.popleft())

    def _start(self, fn: Callable[[ActorHandle, V], Any], value: V) -> None:
        actor = self._idle.popleft()
        try:
            result = fn(actor, value)
            # All results of one call are ready together: its first stands for them.
            key = result[0] if isinstance(result, list) and result else result
            if not isinstance(key, ObjectRef):
                raise TypeError(
                    f"the function of a pool must return the reference of a call, as in `lambda actor, value: "
                    f"actor.method.remote(value)`; it returned a {type(result).__name__}"
                )
        except BaseException:
            self._idle.appendleft(actor)
            raise
        self._calls[key] = _Call(actor, result)

    def _forget(self) -> None:
        """Drop what earlier users left. Their actors are free at once; what still runs there simply comes first."""
        self._waiting.clear()
        calls, self._calls = self._calls, {}
        self._idle.extend(call.actor for call in calls.values())
