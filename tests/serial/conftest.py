"""Hooks of a test's own, so that no test registers anything for the others."""

from __future__ import annotations

import pytest

from shoal.serial import Hooks


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()
