"""Runs programs of their own, as users start them, and hands back what they printed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def script_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that finds shoal in this checkout."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **(variables or {})}


def write_script(folder: Path, source: str) -> Path:
    """A program file with `source`, which may be indented."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(source), "utf-8")
    return path


def run_script(
    folder: Path,
    source: str,
    *,
    exit_code: int = 0,
    variables: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `source` in a process of its own, in `folder`; fails unless it exits with `exit_code`."""
    result = subprocess.run(
        [sys.executable, str(write_script(folder, source))],
        cwd=folder,
        env=script_environment(variables),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    said = f"--- stdout\n{result.stdout}--- stderr\n{result.stderr}"
    assert result.returncode == exit_code, f"the script exited with {result.returncode}\n{said}"
    return result
