"""`shoal memory` by hand: what it shows of a cluster of two nodes, its options, and what it says to those who mistyped."""

from __future__ import annotations

import json

import pytest

from tests.cli.commands import Commands

DRIVER = """
import numpy, shoal
shoal.init(address="auto")

@shoal.remote
class Keeper:
    def keep(self):
        self.large = shoal.put(numpy.ones(200_000))
        self.small = [shoal.put(number) for number in range(5)]

keeper = Keeper.options(name="kept", lifetime="detached", num_cpus=0).remote()
shoal.get(keeper.keep.remote())
"""


def test_what_a_detached_actor_keeps_is_shown_in_every_way(shoal_command: Commands) -> None:
    head = shoal_command.start_head(SHOAL_RECORD_CALL_SITES="1")
    shoal_command.start_node(head.address(), SHOAL_RECORD_CALL_SITES="1")
    assert shoal_command.program(DRIVER).code == 0
    said = json.loads(shoal_command.run("memory", "--format", "json").said)
    assert len(said["nodes"]) == 2
    assert (said["count"], said["more"], said["silent"]) == (6, 0, [])
    assert said["blocks"] == []
    large, *small = said["objects"]
    assert large["size"] > 1_600_000
    assert large["location"] == "SHARED_MEMORY"
    assert large["why"].startswith(f"actor kept (pid {large['owner_pid']})")
    assert large["why"].endswith("has 1 reference")
    assert large["call_site"].endswith(":8 in Keeper.keep")
    assert {one["location"] for one in small} == {"INLINE"}
    (node,) = [node for node in said["nodes"] if node["objects"]]
    assert large["nodes"] == [node["node_id"]]

    table = shoal_command.run("memory", "--units", "KB")
    assert "6 objects and handles of actors" in table.said
    assert f"{large['size'] / 1024:,.3f} KB" in table.said
    assert "By the place in the program that made them:" in table.said
    assert table.said.count("LOCAL_REFERENCE") == 6 + 2
    assert table.complained == ""

    short = shoal_command.run("memory", "-n", "2", "--sort-by", "OBJECT_SIZE")
    assert "note: 4 more objects are not shown, only counted" in short.complained
    assert large["object_id"] in short.said

    grouped = shoal_command.run("memory", "--group-by", "STACK_TRACE", "--sort-by", "age")
    assert [line for line in grouped.said.splitlines() if line.startswith("call-site ")] == [
        f"call-site {large['call_site']}",
        f"call-site {small[0]['call_site']}",
    ]
    sums = shoal_command.run("memory", "--stats-only", "--group-by", "node")
    assert f"node {node['node_id']}" in sums.said
    assert large["object_id"] not in sums.said
    groups = json.loads(
        shoal_command.run("memory", "--stats-only", "--group-by", "type", "--format", "json").said
    )
    assert "objects" not in groups
    (group,) = groups["groups"]
    assert (group["group"], group["count"]) == ("LOCAL_REFERENCE", 6)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--sort-by", "colour"), 2, "'colour' is not one of 'size', 'age'"),
        (("--group-by", "colour"), 2, "'colour' is not one of 'owner', 'node'"),
        (("--units", "TB"), 2, "'TB' is not one of"),
        (("-n", "0"), 2, "--num-entries"),
        ((), 3, "`shoal start --head`"),
    ],
)
def test_mistakes_are_told_with_what_is_right(
    shoal_command: Commands, words: tuple[str, ...], code: int, text: str
) -> None:
    result = shoal_command.run("memory", *words)
    assert result.code == code
    assert text in " ".join(result.complained.split())


def test_a_cluster_without_objects_says_so(shoal_command: Commands) -> None:
    shoal_command.start_head()
    said = shoal_command.run("memory").said
    assert "\n0 objects and handles of actors, 0 B\n" in said
