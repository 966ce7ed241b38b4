"""What random walks have found once is looked for each time."""

from __future__ import annotations

from tests.fuzz import kept_seeds, walks


def test_every_walk_that_has_failed_once_is_walked_again() -> None:
    known = walks()
    for kind, seed in kept_seeds():
        known[kind](seed)
