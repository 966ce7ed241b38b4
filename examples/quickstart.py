"""Tasks, objects, an actor, `wait` and an error, in one page: `python examples/quickstart.py`."""

import random

import shoal


@shoal.remote
def count(genome: str, motif: str) -> tuple[str, int]:
    """A task: a function that runs in another process."""
    if not motif:
        raise ValueError("an empty motif is found everywhere")
    return motif, genome.count(motif)


@shoal.remote
class Tally:
    """An actor: an object that lives in a process of its own and keeps its state."""

    def __init__(self) -> None:
        self._hits: dict[str, int] = {}

    def add(self, motif: str, hits: int) -> None:
        self._hits[motif] = hits

    def most_frequent(self) -> str:
        return max(self._hits, key=self._hits.__getitem__)


def main() -> None:
    with shoal.init():
        # An object: stored once, in shared memory, and read there by every task that is given it.
        genome = shoal.put("".join(random.Random(7).choices("ACGT", k=2_000_000)))

        tally = Tally.remote()
        pending = [count.remote(genome, motif) for motif in ("GATTACA", "TATA", "CAT", "ACG")]
        while pending:  # take the results in the order in which they are ready
            done, pending = shoal.wait(pending)
            motif, hits = shoal.get(done[0])
            print(f"{motif:8} {hits:6,}")
            tally.add.remote(motif, hits)
        print("most frequent:", shoal.get(tally.most_frequent.remote()))

        try:
            shoal.get(count.remote(genome, ""))
        except ValueError as error:  # the task's own type of error, with its remote traceback
            print("caught:", str(error).splitlines()[-1])


if __name__ == "__main__":
    main()
