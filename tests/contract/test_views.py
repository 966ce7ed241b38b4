"""What nodes are told of each other's resources: the newest, and not more often than the control store can bear."""

from __future__ import annotations

import asyncio

import msgspec

from shoal.config import Config, view_s
from shoal.control.storage.memory import MemoryStorage
from shoal.messages.control import ListNodes, NodeJoined, NodeView, ViewChanged
from shoal.messages.placement import ViewRow
from tests.contract.members import QUICK, Node, serving, until


def test_views_reach_the_others() -> None:
    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            first, second = Node(1, control.port), Node(2, control.port)
            await first.link.join()
            await second.link.join()
            for version in range(1, 50):
                row = ViewRow(first.node_id, version, first.row.total, {"CPU": version})
                first.link.post(NodeView(row))
                await asyncio.sleep(0.001)
            await second.hear(lambda: newest(second).get(first.node_id) == 49)
            versions = [
                row.version
                for order in second.heard(ViewChanged)
                for row in order.rows
                if row.node_id == first.node_id
            ]
            assert versions == sorted(versions)
            (row, _) = await second.link.call(ListNodes())
            assert row.available == {"CPU": 49}
            # After a break all rows come again, as they are.
            second.orders.clear()
            control.cut()
            await second.hear(lambda: any(not o.current for o in second.heard(ViewChanged)))
            assert newest(second)[first.node_id] == 49
            first.link.close()
            second.link.close()

    def newest(node: Node) -> dict[bytes, int]:
        return {row.node_id: row.version for order in node.heard(ViewChanged) for row in order.rows}

    asyncio.run(scenario())


def test_views_are_rarer_the_more_nodes_there_are() -> None:
    async def scenario() -> None:
        config = msgspec.structs.replace(QUICK, views_per_s=2)
        async with serving(MemoryStorage(), config=config) as control:
            loop = asyncio.get_running_loop()
            nodes = [Node(number, control.port, config=config) for number in range(1, 7)]
            for node in nodes:
                await node.link.join()
            first = nodes[0]
            await first.hear(lambda: len(first.heard(NodeJoined)) == 5)
            sessions, link = control.sessions, first.link
            for timer in (sessions._views_due, link._view_timer):
                if timer is not None:
                    timer.cancel()
            sessions._views_due = link._view_timer = None
            now = loop.time()
            first.link.post(NodeView(ViewRow(first.node_id, 9, first.row.total, {})))
            # The first row leaves at once.
            await until(lambda: sessions._views_due is not None)
            for timer in (sessions._views_due, link._view_timer):
                assert timer is not None
                assert timer.when() - now >= 3
            for node in nodes:
                node.link.close()

    asyncio.run(scenario())


def test_the_time_between_views_grows_with_the_cluster() -> None:
    config = Config()
    assert [view_s(config, nodes) for nodes in (1, 200, 1_000, 10_000)] == [0.02, 0.02, 0.1, 1]
