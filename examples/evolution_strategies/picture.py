"""The learning curve, drawn to a PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # not pyplot: a file is wanted, not a window

from examples.evolution_strategies.learning import Generation


def draw(runs: Mapping[str, Sequence[tuple[float, Generation]]], target: float, path: Path) -> None:
    """Draw every run, given as (seconds since its start, generation), under its name.

    All runs learn the same thing, so the longest stands for all in the left half; the right half
    shows how long each took to learn it.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_generation, by_time = figure.subplots(1, 2, sharey=True)

    longest = [generation for _, generation in max(runs.values(), key=len)]
    numbers = [generation.number for generation in longest]
    low, high = np.array([np.percentile(g.returns, (10, 90)) for g in longest]).T
    by_generation.fill_between(numbers, low, high, alpha=0.2, label="10th to 90th percentile")
    by_generation.plot(numbers, [g.returns.mean() for g in longest], label="mean of generation")
    exams = [(g.number, g.exam) for g in longest if g.exam is not None]
    if exams:
        by_generation.plot(
            *zip(*exams, strict=True), "k*", markersize=11, label="exam, fresh episodes"
        )
    by_generation.set(title="CartPole-v1", xlabel="generation", ylabel="return", ylim=(0, 520))
    by_generation.xaxis.get_major_locator().set_params(integer=True)

    for name, run in runs.items():
        by_time.plot([at for at, _ in run], [g.returns.mean() for _, g in run], label=name)
    by_time.set(title="the same run, by the clock", xlabel="seconds", xlim=(0, None))

    for axes in (by_generation, by_time):
        axes.axhline(target, color="grey", linestyle="--", linewidth=1, label=f"target {target:g}")
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
