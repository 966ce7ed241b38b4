"""The rollouts of a run, spread over all processors by shoal.

    task     `rollout`       plays the episodes of one mirrored pair of policies, 2 to 40 ms
    task     `examine`       plays some of the episodes of an exam
    actor    `SharedNoise`   makes the noise table, and owns the stream of draws from it
    object   the noise table, 16 MB: made once, then read by every task where it lies in shared
             memory, without a copy
    object   the parameters: put once a generation, whatever the number of tasks; so small that
             they travel with them, but a network of any size would be passed in the same way

Rollouts finish in any order and are taken as they come; what is learnt from them does not depend on
that order (see `learning.py`).
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

import shoal
from examples.evolution_strategies.cartpole import (
    PARAMETER_COUNT,
    Parameters,
    Score,
    play,
    play_mirrored,
)
from examples.evolution_strategies.learning import Settings
from examples.evolution_strategies.noise import Noise

EXAM_EPISODES_PER_TASK = 5
"""About 25 ms of work: long beside the cost of a task, short enough to share out."""


@shoal.remote
def rollout(
    parameters: Parameters,
    table: NDArray[np.float32],
    start: int,
    sigma: float,
    seeds: Sequence[int],
) -> Score:
    """Score one mirrored pair. `table` is a read-only view of shared memory, not a copy."""
    return play_mirrored(parameters, table, start, sigma, seeds)


@shoal.remote
def examine(parameters: Parameters, seeds: Sequence[int]) -> list[float]:
    """The return of one episode for each seed."""
    returns, _ = play(parameters, seeds)
    return returns


# An ordinary class made an actor class: `serial.py` uses the same one as it is. This actor is idle
# nearly always, and takes no processor away from the tasks.
SharedNoise = shoal.remote(num_cpus=0)(Noise)


class Parallel:
    """A fleet of all processors: see `learning.Fleet` for what its methods promise."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._noise = SharedNoise.remote(settings.seed, PARAMETER_COUNT)
        # References to what the actor is going to return: nothing is waited for here.
        self._table: shoal.ObjectRef[NDArray[np.float32]] = self._noise.table.remote()
        self._next_draw: shoal.ObjectRef[NDArray[np.int64]] = self._noise.draw.remote(
            settings.pairs
        )

    def table(self) -> NDArray[np.float32]:
        return shoal.get(self._table)

    def draw(self) -> NDArray[np.int64]:
        draw = shoal.get(self._next_draw)
        # Ask one generation ahead: the actor answers while the rollouts keep everyone else busy.
        self._next_draw = self._noise.draw.remote(self._settings.pairs)
        return draw

    def rollouts(
        self, parameters: Parameters, starts: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        shared = shoal.put(parameters)
        # Submit them all, so that no worker ever waits for this loop to hand it work.
        index_of = {
            rollout.remote(shared, self._table, start, self._settings.sigma, seeds): index
            for index, start in enumerate(starts)
        }
        pending = list(index_of)
        while pending:
            done, pending = shoal.wait(pending, num_returns=1)
            for ref in done:
                yield index_of[ref], shoal.get(ref)

    def exam(self, parameters: Parameters, seeds: Sequence[int]) -> list[float]:
        shared = shoal.put(parameters)
        refs = [
            examine.remote(shared, seeds[first : first + EXAM_EPISODES_PER_TASK])
            for first in range(0, len(seeds), EXAM_EPISODES_PER_TASK)
        ]
        return list(itertools.chain.from_iterable(shoal.get(refs)))
