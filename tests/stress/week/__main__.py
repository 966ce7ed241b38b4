"""`make week`: a million tasks, 200,000 large objects, killed borrowers; then idle minutes. `python -m tests.stress.week --help`.

Writes three files into a folder: `processes.csv` (a row for each process and sample), `stores.csv` (a row for each sample) and
`figures.json`; `python -m tests.stress.week.plot FOLDER` draws them. Exits with 1 if a value was wrong, something was left, or a process
has grown while idle.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.stress.week.cluster import LoadFailedError, Plan, run
from tests.stress.week.results import figures, verdict, write

_MB = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.week", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=200_000, help="large ones")
    parser.add_argument("--kills", type=int, help="of borrowers; by default one for 200 objects")
    parser.add_argument("--idle", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--drivers", type=int, default=3)
    parser.add_argument("--store", type=int, default=200, metavar="MB", help="of each node")
    parser.add_argument("--hold", type=int, default=300, metavar="MB", help="of each driver")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="a sample")
    parser.add_argument("--most", type=float, default=7200.0, metavar="SECONDS", help="of load")
    parser.add_argument("--out", type=Path, default=Path("out/week"), metavar="FOLDER")
    given = parser.parse_args()
    # Shells start background jobs with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = Plan(
        tasks=given.tasks,
        objects=given.objects,
        kills=given.objects // 200 if given.kills is None else given.kills,
        idle_s=given.idle,
        seed=given.seed,
        nodes=given.nodes,
        drivers=given.drivers,
        store_bytes=given.store * _MB,
        budget_bytes=given.hold * _MB,
        every_s=given.every,
        most_s=given.most,
    )
    began = time.monotonic()
    shown = -100.0

    def say(words: str) -> None:
        nonlocal shown
        now = time.monotonic() - began
        if sys.stdout.isatty() or now - shown > 10 or "%" not in words:
            shown = now
            print(f"{now:6.0f} s  {words}", flush=True)

    try:
        outcome = run(plan, say)
    except KeyboardInterrupt:
        print("interrupted; the cluster has ended", file=sys.stderr)
        return 130
    except LoadFailedError as error:
        print(error, file=sys.stderr)
        return 1
    found = figures(outcome)
    write(outcome, found, given.out)
    problems = verdict(outcome, found)
    print(found.table())
    print(*problems or ["nothing is left, and nothing grows while idle"], sep="\n")
    print(f"samples are in {given.out}")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
