"""Which jobs a node remembers."""

from __future__ import annotations

from shoal.messages.node import Job
from shoal.node.jobs import REMEMBERED, Jobs


def job(number: int) -> Job:
    return Job(number.to_bytes(16, "big"), "ns", [], "/")


def test_jobs_that_are_over_are_forgotten_in_the_end_but_for_what_is_used() -> None:
    forgotten: list[bytes] = []
    jobs = Jobs(forgotten.append)
    used = {job(3).job_id, job(5).job_id}
    runs = job(0)
    jobs[runs.job_id] = runs
    for number in range(1, 3 * REMEMBERED):
        each = job(number)
        jobs[each.job_id] = each
        assert not jobs.is_over(each.job_id)
        # Told twice, as jobs are: first in good order, then not.
        for _ in range(2):
            jobs.on_over(each.job_id, used.__contains__)
        assert jobs.is_over(each.job_id)
        assert len(jobs) <= REMEMBERED + 2
    assert runs.job_id in jobs
    assert used <= jobs.keys()
    assert job(1).job_id not in jobs
    assert job(1).job_id in forgotten
    assert not used & set(forgotten)
    used.clear()
    for number in range(3 * REMEMBERED, 5 * REMEMBERED):
        each = job(number)
        jobs[each.job_id] = each
        jobs.on_over(each.job_id, used.__contains__)
    assert job(3).job_id not in jobs
    assert len(jobs) == REMEMBERED + 1
    assert len(set(forgotten)) == len(forgotten)
    assert not jobs.keys() & set(forgotten)
    # One of which nothing is known any more is over for good.
    jobs.on_over(job(1).job_id, used.__contains__)
    assert job(1).job_id not in jobs


def test_a_job_that_was_over_before_it_was_heard_of_is_forgotten_like_the_others() -> None:
    """The end of a job, and another node's word of it, travel on ways of their own."""
    forgotten: list[bytes] = []
    jobs = Jobs(forgotten.append)

    def unused(_job_id: bytes) -> bool:
        return False

    for number in range(3 * REMEMBERED):
        each = job(number)
        if number % 2:
            jobs.on_over(each.job_id, unused)
            jobs.learn(each, unused, over=False)
        else:
            jobs.learn(each, unused, over=True)
        assert jobs.is_over(each.job_id)
        assert len(jobs) <= REMEMBERED + 1
    assert len(forgotten) == 2 * REMEMBERED
    # Ends of which nothing else is ever heard are forgotten, too.
    for number in range(3 * REMEMBERED, 6 * REMEMBERED):
        jobs.on_over(job(number).job_id, unused)
    assert len(jobs._past) == REMEMBERED
    runs = job(0)
    jobs.learn(runs, unused, over=False)
    assert not jobs.is_over(runs.job_id)
