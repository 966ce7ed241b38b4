"""The command line: picks rows and peers, runs them, reports.

Owns: the order of a run (environments, sessions, installed sizes, report) and its exit status: 0,
or 1 when a row could not be measured, with ``--strict`` also when one missed its target.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import environments, flame, machine, report
from bench.census import become_subreaper
from bench.launch import Failed, Launcher, Outcome, PeerFacts
from bench.measure import QUICK, Plan, Samples
from bench.peers import PEERS, REPOSITORY
from bench.results import Scoreboard, Verdict
from bench.rows import ROWS, Row, select
from bench.schedule import turns

RESULTS = Path(__file__).with_name("results")
DEFAULT_ROUNDS = 3
_FILE_WIDTH = 170
_PROFILE_PLAN = Plan(warmup_s=1.0, duration_s=6.0)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    # Whoever ends the run by SIGTERM (a time limit) gets the same cleaning up as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Into a file or a pipe, the table is as wide as it is; on a terminal it folds.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    if options.list:
        _list(console)
        return 0
    try:
        rows = select(options.rows)
        if options.profile:
            return _profile(rows, options, console)
        return _bench(rows, options, console)
    except (environments.InstallError, flame.NoProfilerError, ValueError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        return 130


def _bench(rows: tuple[Row, ...], options: argparse.Namespace, console: Console) -> int:
    if options.quick:
        rows = tuple(row for row in rows if not row.slow)
    rounds = options.rounds or (1 if options.quick else DEFAULT_ROUNDS)
    peers = _peers(rows, options.peers)
    rows = tuple(row for row in rows if any(peer in peers for peer in row.peers))
    facts = machine.facts()
    _warn_if_busy(facts["load_before"], console)
    become_subreaper()
    board = Scoreboard(rows, peers)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        launcher = Launcher(
            _interpreters(rows, peers, options.ray_python, console),
            QUICK if options.quick else Plan(),
            Path(folder),
            init=options.init,
        )
        _run_sessions(rows, peers, rounds, launcher, board, console)
        for row in rows:
            if row.kind is None:
                _weigh(row, peers, Path(folder), board, launcher.facts, console)
    finished = report.Report(facts, launcher.plan, rounds, launcher.facts, board.results())
    report.show(finished, console)
    complete = rows == ROWS and set(peers) == set(PEERS) and not options.init
    written = report.write(finished, RESULTS, "latest" if complete else "partial")
    console.print("written: " + ", ".join(str(path.relative_to(REPOSITORY)) for path in written))
    verdicts = {result.verdict for result in finished.results}
    failed = Verdict.ERROR in verdicts or (options.strict and Verdict.MISS in verdicts)
    return 1 if failed else 0


def _run_sessions(
    rows: Sequence[Row],
    peers: Collection[str],
    rounds: int,
    launcher: Launcher,
    board: Scoreboard,
    console: Console,
) -> None:
    planned = list(turns(rows, peers, rounds))
    for index, turn in enumerate(planned, start=1):
        # A row that failed is not tried again: a hang would cost its timeout in every round.
        due = [row for row in turn.rows if not board.has_failed(row, turn.peer)]
        place = f"{index}/{len(planned)}, round {turn.round} of {turn.rounds}, {turn.peer}"
        with console.status(f"{place}: {', '.join(row.name for row in due)}"):
            for outcome in launcher.run(turn.peer, due):
                _note(outcome, turn.peer, board)
                console.print(f"{place}: {_describe(outcome)}", soft_wrap=True)


def _note(outcome: Outcome, peer: str, board: Scoreboard) -> None:
    if isinstance(outcome, Failed):
        board.failed(outcome.row, peer, f"{outcome.error.strip()}\n{outcome.output}".strip())
    else:
        board.measured(outcome.row, peer, outcome.samples)


def _describe(outcome: Outcome) -> str:
    name = outcome.row.name
    if isinstance(outcome, Failed):
        return f"{name} [bold red]failed[/]: {escape(_headline(outcome))}"
    median = statistics.median(outcome.samples.values)
    return f"{name} {report.number(median)} {outcome.row.unit}"


def _headline(failed: Failed) -> str:
    """One line: the exception of a traceback; else what happened, and the last thing printed."""
    lines = failed.error.strip().splitlines()
    if len(lines) > 1:
        return lines[-1]
    *_, last = ["", *failed.output.splitlines()]
    return f"{lines[0]}; {last}" if last else lines[0]


def _weigh(
    row: Row,
    peers: Collection[str],
    scratch: Path,
    board: Scoreboard,
    facts: dict[str, PeerFacts],
    console: Console,
) -> None:
    """The installed size: no session measures it."""
    requirements = {"shoal": str(REPOSITORY), "ray": environments.ray_pin()}
    for peer in (peer for peer in row.peers if peer in peers):
        facts.setdefault(peer, PeerFacts())
        with console.status(f"{peer}: installing into a fresh environment"):
            try:
                seen: Samples = environments.installed_size(
                    requirements[peer], scratch, row.timeout_s
                )
            except environments.InstallError as error:
                board.failed(row, peer, str(error))
                console.print(
                    f"{peer}: {row.name} [bold red]failed[/]: {escape(str(error))}", soft_wrap=True
                )
            else:
                board.measured(row, peer, seen)
                console.print(f"{peer}: {row.name} {report.number(seen.values[0])} {row.unit}")


def _profile(rows: tuple[Row, ...], options: argparse.Namespace, console: Console) -> int:
    """Run each row once under py-spy, on shoal unless told otherwise."""
    peer = options.peers[0] if options.peers else "shoal"
    rows = tuple(row for row in rows if row.kind_for(peer) is not None)
    if not rows or rows == ROWS:
        raise ValueError(f"--profile needs --rows with rows that {peer} is measured in")
    folder = RESULTS / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    become_subreaper()
    interpreters = _interpreters(rows, {peer}, options.ray_python, console)
    failed = False
    for row in rows:
        output = folder / f"{row.name}.{peer}.speedscope.json"
        output.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            launcher = Launcher(
                interpreters, _PROFILE_PLAN, Path(scratch), flame.command(output), options.init
            )
            with console.status(f"{peer}: {row.name} under py-spy"):
                outcomes = list(launcher.run(peer, [row]))
        for outcome in outcomes:
            console.print(f"{peer}: {_describe(outcome)} (slowed by the profiler)")
            failed |= isinstance(outcome, Failed)
        if output.exists():
            _show_profile(output, console)
        else:
            failed = True
            for trouble in launcher.facts[peer].troubles:
                console.print(trouble, markup=False)
            console.print(f"py-spy wrote no {output.name}; may it trace processes here?")
    return 1 if failed else 0


def _show_profile(output: Path, console: Console) -> None:
    for thread in flame.busiest(output):
        table = Table(title=f"{thread.name}: {thread.seconds:.1f} s", title_justify="left")
        table.add_column("own", justify="right")
        table.add_column("total", justify="right")
        table.add_column("function")
        for place in thread.functions:
            own, total = thread.own[place], thread.total[place]
            table.add_row(f"{own / thread.seconds:.0%}", f"{total / thread.seconds:.0%}", place)
        console.print(table)
    console.print(f"written: {output.relative_to(REPOSITORY)} (open it in speedscope)")


def _peers(rows: Sequence[Row], asked: Sequence[str] | None) -> tuple[str, ...]:
    needed = {peer for row in rows for peer in row.peers}
    return tuple(peer for peer in PEERS if peer in needed and (not asked or peer in asked))


def _interpreters(
    rows: Sequence[Row], peers: Collection[str], ray_python: str | None, console: Console
) -> dict[str, Path]:
    here = Path(sys.executable)
    interpreters = dict.fromkeys(peers, here)
    if "ray" not in peers or not any(row.kind is not None for row in rows):
        return interpreters
    if ray_python is not None:
        interpreters["ray"] = Path(ray_python).absolute()
        if not interpreters["ray"].exists():
            raise ValueError(f"--ray-python {ray_python}: there is no such file")
        return interpreters
    with console.status(f"making {environments.RAY_VENV.name} with {environments.ray_pin()}"):
        interpreters["ray"] = environments.ensure_ray()
    return interpreters


def _warn_if_busy(load: float, console: Console) -> None:
    if load > 0.5:
        console.print(
            f"[yellow]The machine is busy (load {load}); figures will be low and spread wide."
        )


def _list(console: Console) -> None:
    table = Table("name", "row", "unit", "target")
    for row in ROWS:
        table.add_row(row.name, row.title, row.unit, str(row.target))
    console.print(table)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, not {text}")
    return value


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--list", action="store_true", help="show all rows and end")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["*"],
        metavar="GLOB",
        help="rows to measure, by name (default: all)",
    )
    parser.add_argument(
        "--peers", nargs="+", choices=sorted(PEERS), help="only these (default: all that rows need)"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {DEFAULT_ROUNDS}; 1 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help="one round of short samples, without the slow rows"
    )
    parser.add_argument("--strict", action="store_true", help="a missed target is a failure")
    parser.add_argument(
        "--profile", action="store_true", help="run the rows on shoal under py-spy instead"
    )
    parser.add_argument(
        "--init",
        type=_json_object,
        default={},
        metavar="JSON",
        help="more options of `init` for both peers, such as '{\"object_store_memory\": 1000000000}'",
    )
    parser.add_argument(
        "--ray-python",
        default=os.environ.get("SHOAL_BENCH_RAY_PYTHON"),
        metavar="PATH",
        help="an interpreter that has Ray (default: SHOAL_BENCH_RAY_PYTHON, else .venv-ray is made)",
    )
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options
