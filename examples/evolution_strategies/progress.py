"""What is seen while a run goes on.

A line for each generation, for people and for log files alike; on a terminal also a bar for the
generation under way, which leaves no trace.
"""

import time
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from examples.evolution_strategies.cartpole import Score
from examples.evolution_strategies.learning import Generation, Settings


class Watch:
    """Shows one run of `learning.train` that began at `began`; use it in a `with` statement."""

    def __init__(self, console: Console, settings: Settings, processors: int, began: float) -> None:
        self._console = console
        self._settings = settings
        self._processors = processors
        self._began = began
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rollouts  {task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task("generation 1", total=settings.pairs, figures="")
        self._reset()

    def __enter__(self) -> Self:
        self._console.print(
            "generation  return: mean    best     steps/s   workers busy   seconds", style="bold"
        )
        self._bar.start()
        self._generation_began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def score(self, score: Score) -> None:
        """A rollout has arrived."""
        self._returns.extend(score.returns)
        self._steps += score.steps
        self._worked_s += score.seconds
        elapsed_s = time.perf_counter() - self._generation_began
        self._bar.update(
            self._row,
            advance=1,
            figures=(
                f"return {np.mean(self._returns):.1f}  {self._steps / elapsed_s:,.0f} steps/s"
                f"  {self._worked_s / elapsed_s:.1f} of {self._processors} busy"
            ),
        )

    def generation(self, generation: Generation) -> None:
        """A generation is complete."""
        busy = generation.worked_s / generation.elapsed_s
        self._console.print(
            f"{generation.number:10}  {generation.returns.mean():12.1f}"
            f"  {generation.returns.max():6.1f}"
            f"  {generation.steps / generation.elapsed_s:10,.0f}"
            f"  {busy:8.2f} of {self._processors}"
            f"  {time.perf_counter() - self._began:8.1f}",
            highlight=False,
        )
        if generation.exam is not None:
            verdict = "reached" if generation.exam >= self._settings.target else "not yet"
            self._console.print(
                f"exam: mean return {generation.exam:.1f} over {self._settings.exam_episodes}"
                f" fresh episodes; target {self._settings.target:g} {verdict}",
                highlight=False,
            )
        self._reset()
        self._bar.reset(self._row, description=f"generation {generation.number + 1}", figures="")

    def _reset(self) -> None:
        self._returns: list[float] = []
        self._steps = 0
        self._worked_s = 0.0
        self._generation_began = time.perf_counter()
