"""`make fuzz`: random histories of the machines, for as long as you like; `python -m tests.fuzz --help`.

Two kinds take turns. *Walks* are made by one number each, the seed: simulated owners and borrowers, placement groups, uploads, forwarded
requests, quotas, tasks. *Property tests* are those of hypothesis (leases, pulls, streams, membership, the store and the rest), which pytest
runs with many more examples than usual.

Every run tries what no run has tried, and prints its seeds. A walk that fails is written to `tests/kept_seeds.txt`, which `make check`
walks from then on (`tests/core/test_kept_seeds.py`). A property test that fails prints the example, to be written down as an `@example`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
KEPT: Final = TESTS / "kept_seeds.txt"

PROPERTY_TESTS: Final = ("core", "store", "wire", "serial")
"""Folders whose property tests need no processes but their own."""

_TURN_S: Final = 10.0
_SHOWN: Final = 3
"""Failures of one kind of walk that are shown in full."""


def walks() -> dict[str, Callable[[int], object]]:
    """Every kind of walk by its name. Imported late: it is all the machines."""
    from tests.core import (
        test_forwarding_random,
        test_groups_random,
        test_quotas_random,
        test_references_random,
        test_tasks_random,
        test_uploads,
    )

    tasks = test_tasks_random.test_every_task_ends_once_and_every_lease_comes_back
    return {
        "references": test_references_random.walk,
        "forwarding": test_forwarding_random.test_every_request_is_answered_once_and_nothing_stays_behind,
        "groups": test_groups_random.test_random_histories_are_all_or_nothing,
        "quotas": test_quotas_random.walk,
        "tasks": tasks.hypothesis.inner_test,
        "uploads": test_uploads.test_all_who_want_an_object_get_it_though_nodes_die,
        "origins": test_uploads.test_when_the_origin_dies_everybody_hears_one_thing_or_the_other,
    }


def kept_seeds() -> list[tuple[str, int]]:
    """The walks that have failed once: kind and seed."""
    lines = KEPT.read_text("utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(word[0], int(word[1])) for word in words]


def keep(kind: str, seed: int, error: BaseException) -> None:
    """Write a walk down that has failed, unless it was."""
    if (kind, seed) in kept_seeds():
        return
    why = (str(error).splitlines() or [type(error).__name__])[0][:80]
    with KEPT.open("a", encoding="utf-8") as file:
        file.write(f"{kind} {seed}  {why}\n")


class Walks:
    """One kind of walk: seeds one after the other, from one that nobody has chosen."""

    def __init__(self, kind: str, walk: Callable[[int], object]) -> None:
        self.kind = kind
        self.walk = walk
        self.first = self.next = int.from_bytes(os.urandom(6), "big")
        self.failed: list[int] = []

    def take_turn(self, until: float) -> None:
        while time.monotonic() < until:
            seed, self.next = self.next, self.next + 1
            try:
                self.walk(seed)
            except Exception as error:  # noqa: BLE001 - whatever a walk raises is what it has found
                self.failed.append(seed)
                keep(self.kind, seed, error)
                say(f"{self.kind}: seed {seed} failed ({error!r:.200})")
                if len(self.failed) <= _SHOWN:
                    traceback.print_exc()

    def report(self) -> str:
        return (
            f"{self.kind}: {self.next - self.first:,} from {self.first}, {len(self.failed)} failed"
        )


def run_property_tests(seconds: float) -> bool:
    """The tests of hypothesis, in a process of their own, with a seed that is printed; False if one has failed."""
    seed = int.from_bytes(os.urandom(4), "big")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-m", "hypothesis"]
    command += ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", "-p", "no:cacheprovider"]
    # So that a failure is an end, and shows before the time is up.
    command.append("-x")
    # What stops a test that hangs would stop one that has many examples.
    command += ["-o", "timeout=0", "-o", "faulthandler_timeout=0"]
    # Each run begins elsewhere: the time may be up before all have had their turn.
    first = seed % len(PROPERTY_TESTS)
    folders = [*PROPERTY_TESTS[first:], *PROPERTY_TESTS[:first]]
    command += [str(TESTS / folder) for folder in folders]
    say(f"property tests for {seconds:.0f} s, --hypothesis-seed={seed}")
    with subprocess.Popen(command, cwd=TESTS.parent) as running:
        try:
            # 5: no tests were found, which is no success.
            return running.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            running.terminate()
            say("property tests: time is up, none has failed so far")
            return True


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def fuzz(seconds: float, kinds: list[str], property_tests: bool) -> int:
    """Take turns until the time is up; the exit status."""
    started = time.monotonic()
    end = started + seconds
    all_walks = [Walks(kind, walk) for kind, walk in walks().items() if kind in kinds]
    passed = True
    if property_tests:
        passed = run_property_tests(seconds / 2)
    turn_s = min(_TURN_S, max((end - time.monotonic()) / max(len(all_walks), 1), 0.1))
    while all_walks and time.monotonic() < end:
        for each in all_walks:
            each.take_turn(min(time.monotonic() + turn_s, end))
            say(f"[{time.monotonic() - started:5.0f} s] {each.report()}")
    failed = [each.report() for each in all_walks if each.failed]
    if failed:
        say(f"failed, and kept in {KEPT.relative_to(TESTS.parent)}: " + "; ".join(failed))
    elif passed:
        say("nothing has failed")
    return 0 if passed and not failed else 1


def main() -> int:
    kinds = list(walks())
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    default = float(os.environ.get("SHOAL_FUZZ_SECONDS", "600"))
    parser.add_argument(
        "--seconds", type=float, default=default, help="how long (SHOAL_FUZZ_SECONDS, %(default)s)"
    )
    parser.add_argument(
        "--only", choices=kinds, action="append", help="these walks, and no property tests"
    )
    parser.add_argument("--seed", type=int, help="one walk again (with --only, of which kind)")
    options = parser.parse_args()
    if options.seed is not None:
        for kind in options.only or ["references"]:
            walks()[kind](options.seed)
            say(f"{kind} {options.seed}: nothing has failed")
        return 0
    return fuzz(options.seconds, options.only or kinds, property_tests=not options.only)


if __name__ == "__main__":
    sys.exit(main())
