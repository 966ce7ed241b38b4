"""The limit of open files: raised as far as may be, and never lowered."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from shoal.wire.descriptors import raise_descriptor_limit


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def set_soft(soft: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def test_it_is_raised_to_what_is_wanted() -> None:
    set_soft(256)
    assert raise_descriptor_limit(300) == soft() == 300


def test_it_is_never_lowered() -> None:
    set_soft(400)
    assert raise_descriptor_limit(300) == soft() == 400


def test_it_is_raised_to_the_hard_limit_and_no_further(limits: tuple[int, int]) -> None:
    _, hard = limits
    set_soft(256)
    raised = raise_descriptor_limit()
    assert soft() == hard
    assert raised == (hard if hard != resource.RLIM_INFINITY else 1 << 20)


def test_what_the_system_refuses_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    set_soft(256)
    with monkeypatch.context() as patched:
        patched.setattr(resource, "setrlimit", refuse)
        assert raise_descriptor_limit(300) == 256
