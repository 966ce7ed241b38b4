"""The command line: train in parallel, then serially, compare, and draw the learning curve.

Exits with 0 if the target was reached (and both runs learnt the same), with 1 if not, with 130
after Ctrl-C, with 2 for bad options; the learning curve so far is drawn in every case.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

import shoal
from examples.evolution_strategies import picture
from examples.evolution_strategies.learning import Fleet, Generation, Settings, train
from examples.evolution_strategies.parallel import Parallel
from examples.evolution_strategies.progress import Watch
from examples.evolution_strategies.serial import Serial


@dataclass
class Run:
    """One training from start to end, or as far as it came."""

    processors: int
    timeline: list[tuple[float, Generation]] = field(default_factory=list)
    """(seconds since the start, generation)"""
    wall_s: float = 0.0

    @property
    def steps(self) -> int:
        return sum(generation.steps for _, generation in self.timeline)

    def reached(self, target: float) -> bool:
        exam = self.timeline[-1][1].exam if self.timeline else None
        return exam is not None and exam >= target

    def learnt_the_same_as(self, other: "Run") -> bool:
        """Whether every return and every parameter is equal, to the last bit."""
        return len(self.timeline) == len(other.timeline) and all(
            np.array_equal(mine.returns, theirs.returns)
            and np.array_equal(mine.parameters, theirs.parameters)
            for (_, mine), (_, theirs) in zip(self.timeline, other.timeline, strict=True)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; `arguments` are those of the command line. Returns its exit code."""
    options = _parse(arguments)
    try:
        settings = Settings(
            seed=options.seed,
            population=options.population,
            generations=options.generations,
            target=options.target,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(soft_wrap=True)  # a line of a log stays one line
    runs: dict[str, Run] = {}
    try:
        if not options.serial:
            _train_in_parallel(settings, options.num_cpus, runs, console)
        if options.serial or options.compare:
            _train_serially(settings, runs, console)
        interrupted = False
    except KeyboardInterrupt:
        console.print("interrupted: showing what there is")
        interrupted = True

    _summarize(runs, console)
    finished = {name: run.timeline for name, run in runs.items() if run.timeline}
    if finished:
        picture.draw(finished, settings.target, options.out)
        console.print(f"learning curve: {options.out}", highlight=False)
    if interrupted:
        return 130
    return _judge(runs, settings.target, console)


def _train_in_parallel(
    settings: Settings, num_cpus: int | None, runs: dict[str, Run], console: Console
) -> None:
    began = time.perf_counter()  # before `init`: starting up is part of the price
    with shoal.init(num_cpus=num_cpus):
        processors = int(shoal.cluster_resources()["CPU"])
        console.print(f"\nin parallel, through shoal, on {processors} processors")
        run = runs["parallel"] = Run(processors)
        _train(settings, Parallel(settings), run, began, console)


def _train_serially(settings: Settings, runs: dict[str, Run], console: Console) -> None:
    began = time.perf_counter()
    console.print("\nserially, in this process")
    run = runs["serial"] = Run(1)
    _train(settings, Serial(settings), run, began, console)


def _train(settings: Settings, fleet: Fleet, run: Run, began: float, console: Console) -> None:
    with Watch(console, settings, run.processors, began) as watch:
        for generation in train(settings, fleet, watch.score):
            watch.generation(generation)
            run.wall_s = time.perf_counter() - began
            run.timeline.append((run.wall_s, generation))


def _summarize(runs: dict[str, Run], console: Console) -> None:
    console.print()
    for name, run in runs.items():
        console.print(
            f"{name:9} {run.wall_s:6.1f} s  {len(run.timeline)} generations"
            f"  {run.steps:,} steps  {run.steps / run.wall_s if run.wall_s else 0:,.0f} steps/s",
            highlight=False,
        )


def _judge(runs: dict[str, Run], target: float, console: Console) -> int:
    """Say what came of it all; the exit code."""
    good = True
    if len(runs) == 2:
        speed_up = runs["serial"].wall_s / runs["parallel"].wall_s
        same = runs["parallel"].learnt_the_same_as(runs["serial"])
        console.print(
            f"speed-up {speed_up:6.2f} on {runs['parallel'].processors} processors, with"
            f" {'equal' if same else 'DIFFERENT'} returns and parameters",
            highlight=False,
        )
        good = same
    for name, run in runs.items():
        if not run.reached(target):
            console.print(
                f"{name}: the target of {target:g} was not reached in {len(run.timeline)}"
                " generations; allow more (--generations) or try a larger --population",
                style="red",
                highlight=False,
            )
            good = False
    return 0 if good else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m examples.evolution_strategies",
        description="Evolution strategies on Gymnasium's CartPole-v1, in parallel through shoal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--population", type=int, default=defaults.population)
    parser.add_argument("--generations", type=int, default=defaults.generations)
    parser.add_argument("--target", type=float, default=defaults.target)
    parser.add_argument("--num-cpus", type=int, help="as for shoal.init: all, if not given")
    parser.add_argument("--out", type=Path, default=Path("out/evolution_strategies.png"))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--serial", action="store_true", help="run only serially, without shoal")
    which.add_argument(
        "--no-compare", dest="compare", action="store_false", help="run only in parallel"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
