"""`shoal list`, `get`, `summary` and `why` by hand: what they show, and what they say to those who mistyped."""

from __future__ import annotations

import json

import pytest

from tests.cli.commands import Commands

DRIVER = """
import sys, shoal
shoal.init(address="auto")

@shoal.remote
def work(x):
    return x

@shoal.remote
class Counter:
    def one(self):
        return 1

counter = Counter.options(name="kept", lifetime="detached", num_cpus=0).remote()
shoal.get([counter.one.remote(), *[work.remote(i) for i in range(3)]])
"""


def test_what_is_left_of_a_driver_is_listed_and_explained(shoal_command: Commands) -> None:
    shoal_command.start_head()
    assert shoal_command.program(DRIVER).code == 0
    (row,) = json.loads(shoal_command.run("list", "actors", "--format", "json").said)
    assert (row["name"], row["state"], row["class_name"]) == ("kept", "ALIVE", "Counter")
    assert "num_restarts" not in row
    table = shoal_command.run("list", "actors", "--detail").said.splitlines()
    assert "NUM_RESTARTS" in table[0].split()
    assert len(table) == 2
    none = shoal_command.run("list", "actors", "--filter", "name!=kept")
    assert none.said == "There are none of which that is so.\n"
    (job,) = json.loads(shoal_command.run("list", "jobs", "--format", "json").said)
    assert job["status"] == "FINISHED"
    one = shoal_command.run("get", "actors", row["actor_id"][:20])
    assert f"actor_id            {row['actor_id']}" in one.said
    assert "kept" in one.said
    why = shoal_command.run("why", row["actor_id"][:20])
    assert "it is alive, in the process with pid" in why.said
    # What a worker remembers that has ended, its node keeps.
    summary = shoal_command.run("summary", "tasks", "--format", "json")
    assert json.loads(summary.said)["summary"]["work"]["state_counts"] == {"FINISHED": 3}
    brief = shoal_command.run("list", "tasks", "--limit", "1")
    assert len(brief.said.splitlines()) == 2
    assert "note: 1 of " in brief.complained


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("list", "acorns"), 2, "'acorns' is none of actors, jobs, nodes"),
        (("list", "tasks", "--filter", "name"), 2, "that is COLUMN=VALUE or COLUMN!=VALUE"),
        (("list", "tasks", "--filter", "nome=x"), 1, "TaskState has task_id, name, state"),
        (("list", "tasks", "--limit", "0"), 2, "--limit"),
        (("get", "task", "ffffffff"), 1, "`shoal list tasks` shows those that are remembered"),
        (("why", "ffffffff"), 1, "It may have finished, or its owner has ended"),
        (("why", "who"), 1, "at least 4 hexadecimal digits"),
    ],
)
def test_mistakes_are_told_with_what_is_right(
    shoal_command: Commands, words: tuple[str, ...], code: int, text: str
) -> None:
    shoal_command.start_head()
    result = shoal_command.run(*words)
    assert result.code == code
    assert text in " ".join(result.complained.split())


def test_without_a_cluster_it_is_said_how_to_start_one(shoal_command: Commands) -> None:
    result = shoal_command.run("list", "tasks")
    assert result.code == 3
    assert "`shoal start --head`" in result.complained
