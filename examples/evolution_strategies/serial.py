"""The rollouts of a run, one after another in this process: what `parallel.py` is measured by."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from examples.evolution_strategies.cartpole import (
    PARAMETER_COUNT,
    Parameters,
    Score,
    play,
    play_mirrored,
)
from examples.evolution_strategies.learning import Settings
from examples.evolution_strategies.noise import Noise


class Serial:
    """A fleet of one: see `learning.Fleet` for what its methods promise."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._noise = Noise(settings.seed, PARAMETER_COUNT)
        self._table = self._noise.table()

    def table(self) -> NDArray[np.float32]:
        return self._table

    def draw(self) -> NDArray[np.int64]:
        return self._noise.draw(self._settings.pairs)

    def rollouts(
        self, parameters: Parameters, starts: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        for index, start in enumerate(starts):
            yield index, play_mirrored(parameters, self._table, start, self._settings.sigma, seeds)

    def exam(self, parameters: Parameters, seeds: Sequence[int]) -> list[float]:
        returns, _ = play(parameters, seeds)
        return returns
