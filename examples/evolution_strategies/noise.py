"""The source of all perturbations: one big table of random numbers, and slices of it.

Guarantees: equal seeds make equal tables and equal draws, in whichever process. Leaves to others
what the numbers are used for.

A perturbation is named by where it starts in the table, so a process that has the table needs one
integer, not the perturbation. Slices may overlap; in a table this large that is harmless.
"""

import numpy as np
from numpy.typing import NDArray

TABLE_SIZE = 1 << 22
"""Numbers in the table: 16 MB. Thousands of times the size of the policy used here."""


class Noise:
    """A table of standard normal numbers, and a random stream of positions in it."""

    def __init__(self, seed: int, perturbation_size: int) -> None:
        if not 0 < perturbation_size <= TABLE_SIZE:
            raise ValueError(
                f"a perturbation of {perturbation_size} numbers does not fit in the noise table,"
                f" which has {TABLE_SIZE}: use a smaller policy or raise TABLE_SIZE"
            )
        table_seed, draw_seed = np.random.SeedSequence(seed).spawn(2)
        self._table_seed = table_seed
        self._draws = np.random.default_rng(draw_seed)
        self._last_start = TABLE_SIZE - perturbation_size

    def table(self) -> NDArray[np.float32]:
        """Make the table. It is not kept: whoever asks for it holds the only copy."""
        return np.random.default_rng(self._table_seed).standard_normal(TABLE_SIZE, np.float32)

    def draw(self, count: int) -> NDArray[np.int64]:
        """The starts of the next `count` perturbations."""
        return self._draws.integers(0, self._last_start, count, endpoint=True)


def perturbation(table: NDArray[np.float32], start: int, size: int) -> NDArray[np.float32]:
    """The `size` numbers from `start` on: a view, not a copy."""
    return table[start : start + size]
