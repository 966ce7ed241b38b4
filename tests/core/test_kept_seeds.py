"""What random walks have found once is looked for each time."""

from __future__ import annotations

import pytest

from tests.fuzz import kept_seeds, walks

WALKS = walks()


@pytest.mark.parametrize(("kind", "seed"), kept_seeds())
def test_a_walk_that_has_failed_once(kind: str, seed: int) -> None:
    WALKS[kind](seed)
