"""Who may know what, against a model that looks for a way from one job to the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.circles import Circles

A, B, C, D = JOBS = (b"a", b"b", b"c", b"d")

jobs = st.sampled_from(JOBS)
meetings = st.lists(st.tuples(jobs, st.none() | jobs), max_size=12)


@given(meetings, st.lists(jobs, max_size=2))
def test_whoever_there_is_a_way_to_may_know(
    met: list[tuple[bytes, bytes | None]], come: list[bytes]
) -> None:
    circles = Circles()
    for job in come:
        circles.enter(job)
    for job, other in met:
        circles.met(job, other)
        circles.check()
    here = {*come, *(job for pair in met for job in pair if job is not None)}
    for job in here:
        reached: set[bytes | None] = {job}
        while True:
            more = {x for pair in met if reached & set(pair) - {None} for x in pair} - reached
            if not more:
                break
            reached |= more
        for other in JOBS:
            assert circles.may_know(job, other) == (other in reached or None in reached)


def test_in_doubt_a_job_may_know() -> None:
    circles = Circles()
    assert circles.may_know(A, B)
    circles.enter(A)
    assert not circles.may_know(A, B)
    assert circles.may_know(A, b"")


def test_what_is_forgotten_leaves_the_others_in_their_circle() -> None:
    circles = Circles()
    circles.met(A, B)
    circles.met(B, C)
    circles.enter(D)
    circles.forget(B)
    circles.forget(B)
    circles.check()
    assert circles.may_know(A, C)
    assert not circles.may_know(D, A)
    # In doubt: it has met others once.
    assert circles.may_know(B, D)
