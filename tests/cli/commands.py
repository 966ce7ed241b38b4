"""Runs `python -m shoal` and programs beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.joining import FoundControl, FoundNode, find_controls, find_nodes

LIMIT_S = 60
TOKEN = "0123456789abcdef" * 4
SMALL = ("--num-cpus", "1", "--object-store-memory", str(64 << 20))
"""Options of a node that is quick to start and takes little."""


@dataclass(frozen=True)
class Result:
    """What a command said and how it ended."""

    code: int
    said: str
    complained: str

    def address(self) -> str:
        """The control store's, as `start` prints it."""
        found = re.search(r"control store at (\S+?)\)", self.said)
        assert found is not None, self
        return found.group(1)


class Commands:
    """Commands of one user, whose home is `home`."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home = home
        self.root = root
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")
        } | {"HOME": str(home), "SHOAL_TMPDIR": str(root), "SHOAL_TOKEN": TOKEN}

    def popen(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shoal", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ | variables,
        )

    def run(self, *arguments: str, **variables: str) -> Result:
        """Run a command to its end. An empty variable is one that is not set."""
        return self._finish([sys.executable, "-m", "shoal", *arguments], variables)

    def program(self, code: str, *arguments: str, **variables: str) -> Result:
        """Run a Python program to its end."""
        return self._finish([sys.executable, "-c", code, *arguments], variables)

    def _finish(self, command: list[str], variables: dict[str, str]) -> Result:
        environ = {n: v for n, v in (self.environ | variables).items() if v}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=environ,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start_head(self, *arguments: str, **variables: str) -> Result:
        """A head at any free port; it must start."""
        result = self.run("start", "--head", "--port", "0", *SMALL, *arguments, **variables)
        assert result.code == 0, result
        return result

    def start_node(self, address: str, *arguments: str, **variables: str) -> Result:
        """A node; it must start."""
        result = self.run("start", "--address", address, *SMALL, *arguments, **variables)
        assert result.code == 0, result
        return result

    def nodes(self) -> list[FoundNode]:
        return find_nodes(str(self.root))

    def controls(self) -> list[FoundControl]:
        return find_controls(str(self.root))

    def left(self) -> list[str]:
        """What there is of nodes and control stores."""
        return [name for name in os.listdir(self.root) if name.startswith(("s-", "c-"))]
