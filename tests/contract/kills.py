"""Runs `writer` and kills it in the middle."""

from __future__ import annotations

import subprocess
import sys


def kill_while_writing(url: str, cluster: str, after: int) -> int:
    """Kill a writer by SIGKILL once it has said so many times that something is durable; the last number that it said."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contract.writer", url, cluster], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            for _ in range(after):
                line = process.stdout.readline()
                assert line, "the writer ended by itself"
        finally:
            process.kill()
        # What it wrote before it died, it had said.
        rest = process.stdout.read()
    return int([line, *rest.rpartition(b"\n")[0].split()][-1])
