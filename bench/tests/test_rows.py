"""The table, the turns, the verdicts and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.launch import PeerFacts
from bench.measure import Batch, Duration, Fresh, Laps, Plan, Rate, Samples
from bench.results import Result, Scoreboard, Verdict
from bench.rows import BY_NAME, ROWS, Row, select
from bench.schedule import turns

RATE, TIME = BY_NAME["task-sync"], BY_NAME["task-queue-100k"]
CEILING, POOL = BY_NAME["actors-1000-time"], BY_NAME["pool-sync"]


def judged(row: Row, **medians: float) -> Result:
    board = Scoreboard([row], medians)
    for peer, value in medians.items():
        board.measured(row, peer, Samples([value]))
    return board.results()[0]


def test_names_are_unique_and_every_row_is_explained() -> None:
    assert len(BY_NAME) == len(ROWS)
    text = Path(__file__).parent.with_name("README.md").read_text()
    assert [row.name for row in ROWS if f"`{row.name}`" not in text] == []


def test_a_rival_that_knows_no_refs_has_a_program_of_its_own() -> None:
    for row in ROWS:
        assert (row.target.rival in {"pool", "sockets"}) == (row.rival_kind is not None)


def test_the_rows_of_a_session_share_its_cluster() -> None:
    clusters: dict[str, set[object]] = {}
    for row in ROWS:
        clusters.setdefault(row.session, set()).add(row.nodes)
    assert [session for session, kinds in clusters.items() if len(kinds) != 1] == []


def test_a_row_that_times_init_has_its_session_to_itself() -> None:
    for row in ROWS:
        if isinstance(row.kind, Fresh):
            assert [other for other in ROWS if other.session == row.session] == [row]


def test_select_keeps_the_order_of_the_table_and_refuses_typing_mistakes() -> None:
    assert [row.name for row in select(["put-*", "task-sync"])] == [
        "task-sync",
        "put-small",
        "put-1mb",
        "put-100mb",
    ]
    with pytest.raises(ValueError, match="no row is called 'tusk'"):
        select(["tusk"])


def test_peers_take_turns() -> None:
    order = [(turn.peer, turn.round) for turn in turns([RATE], ["shoal", "ray"], rounds=2)]
    assert order == [("shoal", 1), ("ray", 1), ("shoal", 2), ("ray", 2)]


def test_rows_of_a_session_share_a_process_and_a_row_may_stop_after_fewer_rounds() -> None:
    shared = [turn.rows for turn in turns(select(["task-sync", "task-chain"]), ["ray"], 1)]
    assert shared == [(BY_NAME["task-sync"], BY_NAME["task-chain"])]
    assert TIME.max_rounds == 2
    assert len(list(turns([TIME], ["ray"], rounds=5))) == 2


def test_only_the_peers_of_a_row_are_given_turns() -> None:
    assert {turn.peer for turn in turns([CEILING], ["shoal", "ray"], 1)} == {"shoal"}
    assert {turn.peer for turn in turns([POOL], ["shoal", "ray", "pool"], 1)} == {"shoal", "pool"}


def test_above_one_is_better_whichever_way_the_unit_goes() -> None:
    assert judged(RATE, shoal=1000.0, ray=100.0).ratio == 10
    assert judged(TIME, shoal=1.0, ray=10.0).ratio == 10


@pytest.mark.parametrize(
    ("row", "medians", "verdict"),
    [
        (RATE, {"shoal": 1000.0, "ray": 100.0}, Verdict.PASS),
        (RATE, {"shoal": 999.0, "ray": 100.0}, Verdict.MISS),
        (TIME, {"shoal": 1.0, "ray": 20.0}, Verdict.PASS),
        (TIME, {"shoal": 1.0, "ray": 19.0}, Verdict.MISS),
        (CEILING, {"shoal": 10.0}, Verdict.PASS),
        (CEILING, {"shoal": 10.1}, Verdict.MISS),
        (POOL, {"shoal": 5.0, "pool": 5.0}, Verdict.PASS),
        (RATE, {"ray": 100.0}, Verdict.OPEN),
        (RATE, {"shoal": 100.0}, Verdict.OPEN),
    ],
)
def test_verdicts(row: Row, medians: dict[str, float], verdict: Verdict) -> None:
    assert judged(row, **medians).verdict is verdict


def test_one_failure_outweighs_any_figure() -> None:
    board = Scoreboard([RATE], ["shoal", "ray"])
    board.measured(RATE, "shoal", Samples([1000.0]))
    board.measured(RATE, "ray", Samples([1.0]))
    board.failed(RATE, "shoal", "crashed in the second round")
    assert board.results()[0].verdict is Verdict.ERROR


def test_the_figure_is_the_median_over_all_rounds() -> None:
    board = Scoreboard([RATE], ["shoal"])
    board.measured(RATE, "shoal", Samples([1.0, 2.0]))
    board.measured(RATE, "shoal", Samples([3.0, 100.0, 4.0]))
    assert board.results()[0].figures["shoal"].median == 3.0


def test_a_rate_is_sampled_between_set_up_and_clean_up() -> None:
    story: list[str] = []

    def workload(session: str) -> Iterator[Batch]:
        story.append(f"open {session}")

        def batch() -> float:
            if story[-1] != "batch":
                story.append("batch")
            return 5

        yield batch
        story.append("close")

    plan = Plan(warmup_s=0.001, sample_s=0.001, duration_s=0.01, min_samples=3)
    samples = Rate(workload).sample("session", plan)
    assert story == ["open session", "batch", "close"]
    assert len(samples.values) >= 3
    assert all(value > 0 for value in samples.values)


def test_a_duration_is_timed_as_often_as_it_says() -> None:
    calls: list[int] = []

    def workload(_: None) -> Iterator[Batch]:
        def action() -> float:
            calls.append(1)
            return 1

        yield action

    assert len(Duration(workload, repeats=4).sample(None, Plan()).values) == 4
    assert len(calls) == 4


def test_a_lap_says_its_own_figure() -> None:
    laps: list[int] = []

    def workload(_: None) -> Iterator[Batch]:
        def lap() -> float:
            laps.append(1)
            return 0.5

        yield lap

    plan = Plan(warmup_s=0.001, duration_s=0.001, min_samples=4)
    samples = Laps(workload).sample(None, plan)
    assert set(samples.values) == {0.5}
    assert len(samples.values) >= 4
    # One lap at least is for warming up.
    assert len(laps) > len(samples.values)


def test_the_report_in_all_three_forms(tmp_path: Path) -> None:
    board = Scoreboard([RATE, CEILING], ["shoal", "ray"])
    board.measured(RATE, "shoal", Samples([12_345.0, 12_000.0], {"import (s)": 0.05}))
    board.failed(RATE, "ray", "no figure within 60 s\nits stacks")
    board.measured(CEILING, "shoal", Samples([4.0]))
    machine = {
        "cpu": "CPU",
        "cores": 2,
        "memory_gb": 8.0,
        "system": "Linux",
        "python": "CPython 3.11",
        "numpy": None,
        "commit": None,
        "started": "2025-01-01",
        "load_before": 0.0,
    }
    facts = {"shoal": PeerFacts(version="1.0"), "ray": PeerFacts(troubles=["left 2 behind"])}
    finished = report.Report(machine, Plan(), 3, facts, board.results())

    as_json, as_markdown = report.write(finished, tmp_path, "latest")
    loaded = json.loads(as_json.read_text())
    assert loaded["summary"] == {"error": 1, "pass": 1}
    assert loaded["rows"][0]["figures"]["shoal"]["median"] == 12_172.5
    assert {path.name for path in tmp_path.iterdir()} == {"latest.json", "latest.md"}

    console = Console(width=170, record=True, quiet=False)
    with console.capture() as captured:
        report.show(finished, console)
    for text in (as_markdown.read_text(), captured.get()):
        for part in ("12,172 (12,000 – 12,345)", "no figure within 60 s", "≤ 10", "left 2 behind"):
            assert part in text
