"""The commands as users call them: processes, with a home of their own. What a test leaves running is stopped at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Commands


@pytest.fixture
def shoal_command(tmp_path: Path, session_root: Path) -> Iterator[Commands]:
    """`python -m shoal`."""
    commands = Commands(tmp_path, session_root)
    yield commands
    commands.run("stop", "--grace-period", "5")
