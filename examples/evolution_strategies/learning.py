"""Evolution strategies: the algorithm, apart from where its rollouts run.

Each generation moves the parameters by a number of random perturbations, each in both directions
(mirrored, or antithetic, sampling), plays a few episodes with every one, turns the returns into
ranks, and steps along the perturbations weighted by the ranks of their two sides. After Salimans
et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017).

Guarantees: a run is a function of its `Settings`. Scores may arrive in any order; each goes to its
own row, and sums are taken only when all rows are there. Episodes of an exam are never played in
training. Leaves to a `Fleet` where and when the rollouts are done.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from examples.evolution_strategies.cartpole import (
    LONGEST_EPISODE,
    PARAMETER_COUNT,
    Parameters,
    Score,
    initial_parameters,
)
from examples.evolution_strategies.noise import perturbation

FIRST_EXAM_SEED = 1 << 31
"""Training episodes have seeds below this one, exam episodes have seeds from it on."""

READY = 0.95
"""An exam is held when a generation's mean return is this fraction of the target: perturbed
policies do a little worse than the one in their middle, and an exam costs only a few rollouts."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on."""

    seed: int = 0
    population: int = 64
    """Policies tried in a generation, half of them mirror images: more is steadier and slower."""
    episodes: int = 4
    """Episodes that each of them plays: more makes for longer tasks and less luck."""
    sigma: float = 0.1
    """Size of a perturbation: larger sees further and more dimly."""
    learning_rate: float = 0.03
    generations: int = 60
    """When to give up."""
    target: float = 475.0
    exam_episodes: int = 20

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise ValueError(
                f"population is {self.population}: choose an even number, since each perturbation"
                " is tried in both directions"
            )
        if self.generations < 1:
            raise ValueError(f"generations is {self.generations}: at least one is needed")
        if not 0 < self.target <= LONGEST_EPISODE:
            raise ValueError(
                f"target is {self.target}: choose one above 0 and up to {LONGEST_EPISODE}, where"
                " CartPole-v1 ends every episode"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: choose zero or a positive number")

    @property
    def pairs(self) -> int:
        return self.population // 2


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What happened in one generation."""

    number: int
    returns: NDArray[np.float64] = field(repr=False)
    """One row per pair; column 0 with the perturbation added, column 1 with it subtracted."""
    steps: int
    worked_s: float
    """Time spent in rollouts, summed over all processes."""
    elapsed_s: float
    parameters: Parameters = field(repr=False)
    """After the update."""
    exam: float | None
    """Mean return of those parameters over fresh episodes, if they were thought ready."""


class Fleet(Protocol):
    """What plays the episodes: `serial.Serial` or `parallel.Parallel`."""

    def table(self) -> NDArray[np.float32]:
        """The noise table that perturbations are slices of."""

    def draw(self) -> NDArray[np.int64]:
        """Where in the table the perturbations of the next generation start."""

    def rollouts(
        self, parameters: Parameters, starts: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        """Score every mirrored pair; yield (index into `starts`, score), in any order."""

    def exam(self, parameters: Parameters, seeds: Sequence[int]) -> list[float]:
        """The return of one episode per seed, in the order of the seeds."""


def train(
    settings: Settings, fleet: Fleet, on_score: Callable[[Score], None] = lambda score: None
) -> Iterator[Generation]:
    """Yield generations until an exam reaches the target or the generations run out.

    `on_score` is called for every rollout as it arrives.
    """
    optimizer = Adam(initial_parameters(settings.seed), settings.learning_rate)
    table = fleet.table()
    for number in range(1, settings.generations + 1):
        began = time.perf_counter()
        starts = fleet.draw().tolist()
        returns = np.empty((settings.pairs, 2))
        steps = 0
        worked_s = 0.0
        seeds = training_seeds(settings, number)
        for index, score in fleet.rollouts(optimizer.parameters, starts, seeds):
            returns[index] = score.returns
            steps += score.steps
            worked_s += score.seconds
            on_score(score)
        elapsed_s = time.perf_counter() - began

        optimizer.ascend(gradient(table, starts, centered_ranks(returns), settings.sigma))
        exam = None
        if returns.mean() >= READY * settings.target:
            fresh = exam_seeds(settings, number)
            exam = float(np.mean(fleet.exam(optimizer.parameters, fresh)))
        yield Generation(
            number=number,
            returns=returns,
            steps=steps,
            worked_s=worked_s,
            elapsed_s=elapsed_s,
            parameters=optimizer.parameters,
            exam=exam,
        )
        if exam is not None and exam >= settings.target:
            return


def centered_ranks(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from -0.5 (worst) to 0.5 (best), in the shape of `returns`.

    Ranks make a step's size independent of the scale of returns, and one lucky episode harmless.
    Equal returns share their mean rank: once every policy lasts to the end there is nothing to
    learn, and the ranks say so by being zero.
    """
    _, group, sizes = np.unique(returns, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes + 1) / 2
    centered: NDArray[np.float64] = mean_rank / (returns.size - 1) - 0.5
    return centered[group].reshape(returns.shape)


def gradient(
    table: NDArray[np.float32],
    starts: Sequence[int],
    ranks: NDArray[np.float64],
    sigma: float,
) -> Parameters:
    """Estimate the direction in which ranks rise; `ranks` has one row per pair, as in `train`."""
    weights = (ranks[:, 0] - ranks[:, 1]) / (ranks.size * sigma)
    total = np.zeros(PARAMETER_COUNT)
    for start, weight in zip(starts, weights, strict=True):
        total += weight * perturbation(table, start, PARAMETER_COUNT)
    return total


class Adam:
    """Gradient ascent with running means of the gradient and its square (Kingma and Ba, 2015)."""

    def __init__(self, parameters: Parameters, learning_rate: float) -> None:
        self.parameters = parameters
        """Replaced, not changed, at each step: a vector given out stays as it was."""
        self._learning_rate = learning_rate
        self._mean = np.zeros_like(parameters)
        self._mean_square = np.zeros_like(parameters)
        self._steps = 0

    def ascend(self, gradient: Parameters) -> None:
        """Take one step uphill."""
        self._steps += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._mean_square = 0.999 * self._mean_square + 0.001 * gradient**2
        # Both means start from zero and are too small at first; dividing corrects that.
        mean = self._mean / (1 - 0.9**self._steps)
        mean_square = self._mean_square / (1 - 0.999**self._steps)
        step = self._learning_rate * mean / (np.sqrt(mean_square) + 1e-8)
        self.parameters = self.parameters + step


def training_seeds(settings: Settings, generation: int) -> list[int]:
    """The episodes of one generation: every policy in it plays the same ones."""
    rng = np.random.default_rng((settings.seed, generation))
    return [int(seed) for seed in rng.integers(0, FIRST_EXAM_SEED, settings.episodes)]


def exam_seeds(settings: Settings, generation: int) -> list[int]:
    """Episodes that no policy has met before: not in training and not in an earlier exam."""
    first = FIRST_EXAM_SEED + generation * settings.exam_episodes
    return list(range(first, first + settings.exam_episodes))
