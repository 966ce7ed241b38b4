"""References in coroutines and as futures: `await`, `gather`, `future()`, `as_future()`."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import TaskError
from tests.api.gates import Gate, wait_until
from tests.api.tasks import identity, wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote(max_retries=0)
def fail() -> None:
    raise ValueError("no")


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, timeout=30))


# --- await ---------------------------------------------------------------------------------------------------------------


def test_a_reference_can_be_awaited() -> None:
    async def main() -> list[Any]:
        return [await identity.remote(1), await shoal.put(2)]

    assert run(main()) == [1, 2]


def test_the_loop_goes_on_while_one_waits(gates: Callable[[str], Gate]) -> None:
    gate = gates("value")

    async def main() -> Any:
        waiting = asyncio.ensure_future(wait_for.remote(gate, "value"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        gate.open()
        return await waiting

    assert run(main()) == "value"


def test_an_awaited_failure_raises_as_get_does() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="no") as caught:
            await fail.remote()
        assert isinstance(caught.value, TaskError)

    run(main())


def test_gather_and_as_completed() -> None:
    async def main() -> tuple[list[Any], set[Any]]:
        gathered = await asyncio.gather(*[identity.remote(i) for i in range(50)])
        completed = {
            await one for one in asyncio.as_completed([identity.remote(i) for i in range(5)])
        }
        return gathered, completed

    assert run(main()) == (list(range(50)), set(range(5)))


def test_wait_for_gives_up_and_the_task_goes_on(gates: Callable[[str], Gate]) -> None:
    gate = gates("value")

    async def main() -> Any:
        ref = wait_for.remote(gate, "value")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ref, timeout=0.05)
        gate.open()
        return await ref

    assert run(main()) == "value"


def test_the_same_reference_awaited_by_many(gates: Callable[[str], Gate]) -> None:
    gate = gates("value")

    async def read(ref: Any) -> Any:
        return await ref

    async def main() -> list[Any]:
        ref = wait_for.remote(gate, 3)
        readers = [asyncio.create_task(read(ref)) for _ in range(5)]
        await asyncio.sleep(0)
        gate.open()
        return await asyncio.gather(*readers)

    assert run(main()) == [3] * 5


def test_one_loop_after_another() -> None:
    ref = identity.remote(4)

    async def main() -> Any:
        return await ref

    assert [run(main()) for _ in range(3)] == [4, 4, 4]


def test_get_and_wait_work_inside_a_coroutine() -> None:
    async def main() -> Any:
        ref = identity.remote(5)
        shoal.wait([ref], timeout=30)
        return shoal.get(ref, timeout=30)

    assert run(main()) == 5


def test_loops_in_several_threads_at_once() -> None:
    async def main(offset: int) -> list[Any]:
        return await asyncio.gather(*[identity.remote(offset + i) for i in range(20)])

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda offset: run(main(offset)), (0, 100, 200)))
    assert results == [list(range(offset, offset + 20)) for offset in (0, 100, 200)]


def test_a_borrowed_reference_can_be_awaited(gates: Callable[[str], Gate]) -> None:
    gate = gates("value")

    @shoal.remote
    def reader(refs: list[Any]) -> Any:
        async def read() -> Any:
            return await refs[0]

        return asyncio.run(read())

    result = reader.remote([wait_for.remote(gate, "lent")])
    gate.open()
    assert shoal.get(result, timeout=30) == "lent"


# --- futures -------------------------------------------------------------------------------------------------------------


def test_a_concurrent_future() -> None:
    future = identity.remote(6).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=30) == 6
    assert future.done()


def test_a_future_of_what_is_ready_already() -> None:
    ref = shoal.put(7)
    assert ref.future().result(timeout=30) == 7


def test_a_future_holds_the_failure() -> None:
    error = fail.remote().future().exception(timeout=30)
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)


def test_futures_among_others(gates: Callable[[str], Gate]) -> None:
    gate = gates("late")
    late, quick = wait_for.remote(gate, "late").future(), identity.remote("quick").future()
    done, pending = concurrent.futures.wait(
        [late, quick], timeout=30, return_when=concurrent.futures.FIRST_COMPLETED
    )
    assert (done, pending) == ({quick}, {late})
    gate.open()
    assert late.result(timeout=30) == "late"


def test_callbacks_of_a_future() -> None:
    seen: list[Any] = []
    future = identity.remote(8).future()
    future.add_done_callback(lambda done: seen.append(done.result()))
    wait_until(lambda: seen, "the callback runs")
    assert seen == [8]


def test_a_future_keeps_its_object() -> None:
    futures = [identity.remote(i).future() for i in range(20)]
    assert [future.result(timeout=30) for future in futures] == list(range(20))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_asyncio_future_on_the_running_loop() -> None:
    async def main() -> Any:
        future = identity.remote(9).as_future()
        assert asyncio.isfuture(future)
        return await future

    assert run(main()) == 9
