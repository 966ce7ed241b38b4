"""Virtual environments: the one that Ray runs in, and throw-away ones that are weighed.

Guarantees: ``.venv-ray`` is complete or absent (its stamp is written last and names what was
asked for, so that a changed pin makes a new one).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from bench.measure import Samples
from bench.peers import REPOSITORY

RAY_VENV = REPOSITORY / ".venv-ray"
RAY_REQUIREMENTS = Path(__file__).with_name("ray-requirements.txt")
_STAMP = "complete.txt"
MB = 1e6


class InstallError(Exception):
    """An environment could not be made; the text holds the installer's last words."""


def ray_pin() -> str:
    """The pinned requirement, such as ``ray==2.60.0``."""
    lines = (line.partition("#")[0].strip() for line in RAY_REQUIREMENTS.read_text().splitlines())
    return next(line for line in lines if line.startswith("ray=="))


def ensure_ray(timeout_s: float = 900.0) -> Path:
    """The interpreter of an environment with Ray; makes the environment when it is missing."""
    wanted = [ray_pin(), f"numpy=={metadata.version('numpy')}"]
    stamp_text = "\n".join([sys.version, *wanted])
    stamp = RAY_VENV / _STAMP
    if not stamp.exists() or stamp.read_text() != stamp_text:
        shutil.rmtree(RAY_VENV, ignore_errors=True)
        python = _make(RAY_VENV)
        _install(python, wanted, timeout_s)
        stamp.write_text(stamp_text)
    return _python(RAY_VENV)


def installed_size(requirement: str, scratch: Path, timeout_s: float) -> Samples:
    """Megabytes that installing a requirement adds to a fresh environment.

    The sizes of all files in its site-packages, compiled bytecode included as ``pip`` leaves
    it, less those of an empty environment (``pip`` itself).
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        venv = Path(folder) / "venv"
        python = _make(venv)
        empty_bytes, before = _weigh(venv)
        _install(python, [requirement], timeout_s)
        full_bytes, after = _weigh(venv)
    return Samples([(full_bytes - empty_bytes) / MB], {"distributions": after - before})


def _make(venv: Path) -> Path:
    _run([sys.executable, "-m", "venv", str(venv)], 120.0)
    return _python(venv)


def _python(venv: Path) -> Path:
    return venv / "bin" / "python"


def _install(python: Path, requirements: Sequence[str], timeout_s: float) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *requirements], timeout_s)


def _run(command: Sequence[str], timeout_s: float) -> None:
    # A user's PYTHONPATH would make the installer believe that things are there already.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, check=False, env=env, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise InstallError(
            f"`{' '.join(command)}` took more than {timeout_s:g} s; is the package index "
            "reachable? For Ray, --ray-python names an interpreter that has it already"
        ) from None
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        raise InstallError(f"`{' '.join(command)}` ended with {done.returncode}:\n{last}")


def _weigh(venv: Path) -> tuple[int, int]:
    """Bytes of the files in site-packages, and how many distributions they make up."""
    packages = next((venv / "lib").glob("python*/site-packages"))
    files = (path for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files), len(list(packages.glob("*.dist-info")))
