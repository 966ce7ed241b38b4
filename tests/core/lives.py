"""What became of a task or a call, as the models of random histories count it."""

from __future__ import annotations

from shoal.core.tasks import State, Task


class Life:
    """Of one task: how often it may be retried, how often it began, and how it ended.

    `number` is its place in the order of submission, where that matters.
    """

    def __init__(self, retries: int, number: int = 0) -> None:
        self.retries = retries
        self.number = number
        self.begun = 0
        self.end = ""

    def ends(self, how: str) -> None:
        assert not self.end, f"it ended twice: {self.end}, then {how}"
        self.end = how

    def assert_that_it_ended(self, task: Task) -> None:
        """In one of the ways that a task may."""
        assert self.end, f"{task} never ended"
        assert task.state is State.FINISHED
        if self.end == "done":
            assert self.begun
