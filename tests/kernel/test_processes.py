"""What is read of processes: of this one, of dead ones, and of those with names that look like more of the line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shoal.kernel.processes import has_variable, pids, stat_of


def test_this_process() -> None:
    stat = stat_of(os.getpid())
    assert stat is not None
    assert not stat.dead
    assert (stat.group, stat.session) == (os.getpgid(0), os.getsid(0))
    parent = stat_of(os.getppid())
    assert parent is not None
    assert 0 < parent.began <= stat.began
    assert os.getpid() in pids()


def test_a_child_until_it_is_waited_for() -> None:
    command = [sys.executable, "-c", "import os; os.setsid(); print('.', flush=True); input()"]
    environment = {**os.environ, "SHOAL_TEST_MARK": "seven"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        alive = stat_of(child.pid)
        assert alive is not None
        assert not alive.dead
        assert (alive.group, alive.session) == (child.pid, child.pid)
        assert has_variable(child.pid, "SHOAL_TEST_MARK", "seven")
        assert not has_variable(child.pid, "SHOAL_TEST_MARK", "sev")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        dead = stat_of(child.pid)
        assert dead is not None
        assert dead.dead
        assert dead.began == alive.began
    assert stat_of(child.pid) is None
    assert not has_variable(child.pid, "SHOAL_TEST_MARK", "seven")


def test_a_name_may_have_brackets_and_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "12"
    folder.mkdir()
    after_name = "Z 1 30 40 0 -1 0" + 12 * " 0" + " 99 0"
    folder.joinpath("stat").write_text(f"12 (a) R 1 2 3 (b)) {after_name}\n")
    stat = stat_of(12, tmp_path)
    assert stat is not None
    assert (stat.dead, stat.group, stat.session, stat.began) == (True, 30, 40, 99)
    assert pids(tmp_path) == [12]
