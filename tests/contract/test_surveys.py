"""Questions that the control store asks of nodes: who answers, who does not, and who may ask."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shoal.control.storage.memory import MemoryStorage
from shoal.control.storage.sqlite import SqliteStorage
from shoal.messages.control import (
    ActorGone,
    ActorPlaced,
    ActorRuns,
    CreateActor,
    KillActor,
    ListActors,
    NodeFound,
    PlaceActor,
    SurveyNode,
    SurveyNodes,
)
from shoal.messages.inventory import Arena, ProcessMemory, StoreMemory
from shoal.messages.state import (
    ActorRow,
    AskMemory,
    AskObjects,
    AskTasks,
    AskWhy,
    Findings,
    ObjectRow,
    Reason,
    TaskRow,
)
from shoal.runtime.control_client import ControlClient
from tests.contract.members import TOKEN, Node, serving
from tests.contract.test_control_store import JOB, spec

LONG_MS = 30_000


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def task(number: int, end_ns: int = 0) -> TaskRow:
    state = "FINISHED" if end_ns else "RUNNING"
    return TaskRow(bytes([number]) * 16, f"f{number}", "NORMAL_TASK", state, end_ns=end_ns)


async def asked(node: Node) -> SurveyNode:
    (order,) = await node.ordered(SurveyNode)
    assert isinstance(order, SurveyNode)
    return order


def test_answers_of_nodes_are_put_together_within_the_limit() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            nodes = [Node(number, control.port) for number in (1, 2)]
            for node in nodes:
                await node.link.join()
            answer = nodes[0].link.call(SurveyNodes(AskTasks(3), [], LONG_MS))
            for number, node in enumerate(nodes, 1):
                order = await asked(node)
                assert order.question == AskTasks(3)
                assert order.within_ms < LONG_MS
                rows = [task(10 * number), task(10 * number + 1, end_ns=number)]
                node.link.post(NodeFound(order.number, Findings(tasks=rows, left_out=number)))
            found = await answer
            # What runs comes first, then the latest that has ended.
            assert [row.name for row in found.tasks] == ["f10", "f20", "f21"]
            assert found.left_out == 1 + 2 + 1
            assert found.silent == []
            for node in nodes:
                node.link.close()

    run(scenario)


def test_of_objects_the_largest_are_kept_and_of_memory_all_that_was_told() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            nodes = [Node(number, control.port) for number in (1, 2)]
            for node in nodes:
                await node.link.join()
            answer = nodes[0].link.call(SurveyNodes(AskMemory(2), [], LONG_MS))
            for number, node in enumerate(nodes, 1):
                order = await asked(node)
                rows = [
                    ObjectRow(bytes([size]) * 16, "a/d-1", "READY", size, "inline", 1, 0, 0)
                    for size in (number, 10 * number)
                ]
                process = ProcessMemory(f"a/d-{number}", number, "driver", Arena(), [], [])
                store = StoreMemory(node.node_id, "a", 1, [], Arena(), [], 0, [], [], [], [])
                found = Findings(objects=rows, processes=[process], stores=[store])
                node.link.post(NodeFound(order.number, found))
            found = await answer
            assert [row.size for row in found.objects] == [20, 10]
            assert found.left_out == 2
            assert {process.pid for process in found.processes} == {1, 2}
            assert {store.node_id for store in found.stores} == {node.node_id for node in nodes}
            for node in nodes:
                node.link.close()

    run(scenario)


def test_nobody_gets_more_rows_than_a_control_store_can_take() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            answer = node.link.call(SurveyNodes(AskTasks(1 << 40), [], LONG_MS))
            order = await asked(node)
            assert order.question == AskTasks(100_000)
            node.link.post(NodeFound(order.number, Findings(tasks=[task(1)])))
            assert (await answer).tasks == [task(1)]
            node.link.close()

    run(scenario)


def test_only_the_nodes_that_are_named_are_asked() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            answer = first.link.call(SurveyNodes(AskWhy("ab"), [second.node_id], LONG_MS))
            order = await asked(second)
            reason = Reason("f", "running", "it runs.")
            second.link.post(NodeFound(order.number, Findings(reasons=[reason])))
            assert (await answer).reasons == [reason]
            assert first.heard(SurveyNode) == []
            nobody = await first.link.call(SurveyNodes(AskWhy("ab"), [b"?" * 16], LONG_MS))
            assert nobody == Findings()
            first.link.close()
            second.link.close()

    run(scenario)


def test_who_does_not_answer_in_time_is_named_and_comes_too_late() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            answer = first.link.call(SurveyNodes(AskObjects(5), [], 300))
            row = ObjectRow(b"o" * 16, "a/d-1", "READY", 1, "inline", 1, 0, 0)
            order = await asked(first)
            said = Findings(objects=[row], silent=["worker (pid 7)"])
            first.link.post(NodeFound(order.number, said))
            found = await answer
            assert found.objects == [row]
            assert found.silent == ["worker (pid 7) on node node-1", "node node-2"]
            late = await asked(second)
            second.link.post(NodeFound(late.number, said))
            assert await first.link.call(ListActors()) == []
            first.link.close()
            second.link.close()

    run(scenario)


def test_a_node_that_ends_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            answer = first.link.call(SurveyNodes(AskWhy("ab"), [second.node_id], LONG_MS))
            await asked(second)
            second.link.close("was stopped")
            assert (await answer).silent == ["node node-2 (it has ended)"]
            first.link.close()

    run(scenario)


def test_a_node_that_answers_nothing_is_not_asked_without_end() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()
            call = SurveyNodes(AskWhy("ab"), [], LONG_MS)
            answers = [node.link.call(call) for _ in range(40)]
            # Those that are not passed on are answered at once; the last of them, last.
            await answers[-1]
            await node.hear(lambda: len(node.heard(SurveyNode)) >= 16)
            done = [answer for answer in answers if answer.done()]
            assert len(node.heard(SurveyNode)) == 16
            assert len(done) == 40 - 16
            assert all("has not answered" in str(answer.result().silent) for answer in done)
            # Once it answers, it is asked again.
            for order in node.heard(SurveyNode):
                node.link.post(NodeFound(order.number, Findings()))
            await asyncio.gather(*answers)
            again = node.link.call(call)
            await node.hear(lambda: len(node.heard(SurveyNode)) == 17)
            node.link.post(NodeFound(node.heard(SurveyNode)[-1].number, Findings()))
            assert (await again).silent == []
            node.link.close()

    run(scenario)


def test_whoever_only_looks_may_ask_too() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            node = Node(1, control.port)
            await node.link.join()

            def look() -> Findings:
                with ControlClient(f"127.0.0.1:{control.port}", TOKEN) as client:
                    found: Findings = client.ask(SurveyNodes(AskTasks(1), [], LONG_MS))
                    return found

            looking = asyncio.get_running_loop().run_in_executor(None, look)
            order = await asked(node)
            node.link.post(NodeFound(order.number, Findings(tasks=[task(1)])))
            assert (await looking).tasks == [task(1)]
            node.link.close()

    run(scenario)


def test_actors_are_listed_alive_and_dead_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "control.db"

    async def rows(node: Node) -> dict[bytes, ActorRow]:
        return {row.actor_id: row for row in await node.link.call(ListActors())}

    async def scenario() -> None:
        one, two = spec(1, name="one"), spec(2)
        async with serving(SqliteStorage(path)) as control:
            node = Node(1, control.port)
            await node.link.join()
            for made in (one, two):
                await node.link.call(CreateActor(made, JOB.job_id, False))
            await node.ordered(PlaceActor, 2)
            waiting = await rows(node)
            assert {row.state for row in waiting.values()} == {"PENDING"}
            assert {row.node_id for row in waiting.values()} == {node.node_id}
            node.link.post(ActorPlaced(one.actor_id, 0, "10.0.0.1:7000/w-00000001", 11))
            node.link.post(ActorRuns(one.actor_id, 0, b"", ""))
            node.link.post(KillActor(two.actor_id, True))
            node.link.post(ActorGone(two.actor_id, 0, "was killed", False))
            found = await rows(node)
            assert (found[one.actor_id].state, found[one.actor_id].pid) == ("ALIVE", 11)
            dead = found[two.actor_id]
            assert (dead.state, dead.class_name, dead.node_id) == ("DEAD", "Counter", node.node_id)
            assert "shoal.kill" in dead.cause
            assert dead.since_ns >= waiting[two.actor_id].since_ns
        # It has not said goodbye: its actors are expected to live.
        node.link.close()
        async with serving(SqliteStorage(path)) as control:
            node = Node(2, control.port)
            await node.link.join()
            found = await rows(node)
            assert found[one.actor_id].class_name == "Counter"
            assert found[two.actor_id].state == "DEAD"
            node.link.close()

    run(scenario)
