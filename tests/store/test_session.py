from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from shoal.store import (
    Arena,
    Reader,
    default_capacity_bytes,
    remove_session,
    session,
    shm_directory,
    sweep,
)
from tests.store.conftest import MB


def test_the_directory_is_private_and_found_again(tmp_path: Path) -> None:
    path = shm_directory("s_1.a-b", tmp_path)
    assert path == tmp_path / f"shoal-{os.getuid()}-s_1.a-b"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert shm_directory("s_1.a-b", tmp_path) == path
    remove_session(path)
    assert not path.exists()
    remove_session(path)


def test_it_is_in_shared_memory_or_else_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_SHARED_MEMORY", tmp_path)
    assert shm_directory("x").parent == tmp_path
    monkeypatch.setattr(session, "_SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert shm_directory("y").parent == tmp_path


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a" * 200, "a\n"])
def test_names_that_would_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a session is named"):
        shm_directory(name, tmp_path)


@pytest.mark.parametrize("planted", ["open directory", "link", "file"])
def test_what_others_may_have_put_there_is_refused(tmp_path: Path, planted: str) -> None:
    path = tmp_path / f"shoal-{os.getuid()}-x"
    if planted == "open directory":
        path.mkdir()
        path.chmod(0o770)
    elif planted == "link":
        (tmp_path / "target").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "target")
    else:
        path.touch(0o700)
    with pytest.raises((PermissionError, FileExistsError)):
        shm_directory("x", tmp_path)


def test_sweeping_removes_the_files_of_one_creator_and_leaves_views_alone(directory: Path) -> None:
    dead = Arena(directory, "dead", quota_bytes=64 * MB)
    alive = Arena(directory, "dead2", quota_bytes=64 * MB)
    reader = Reader(directory)
    block = dead.create(MB)
    block.buffer[:3] = b"abc"
    view = reader.view(block.location)
    dead.create(1000)
    alive.create(1000)
    dead.close(unlink=False)
    (directory / "dead-notes").touch()
    assert sweep(directory, "dead") == 2
    assert sweep(directory, "dead") == 0
    assert sorted(path.name for path in directory.iterdir()) == [
        "dead-notes",
        "dead2-0s",
        "dead2.locks",
    ]
    assert view[:3] == b"abc"
    with pytest.raises(ValueError, match="letters and digits"):
        sweep(directory, "../dead")
    del view, block
    reader.close()
    alive.close(unlink=True)


def test_capacity_is_a_share_of_memory_within_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "memory_limit_bytes", lambda: 1000)
    assert default_capacity_bytes(tmp_path) == 300
    assert default_capacity_bytes(tmp_path, 0.5) == 500
    monkeypatch.setattr(session, "memory_limit_bytes", lambda: 1 << 60)
    found = os.statvfs(tmp_path)
    assert default_capacity_bytes(tmp_path) <= found.f_blocks * found.f_frsize


def test_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = session.memory_limit_bytes()
    assert machine > 0
    monkeypatch.setattr(session, "CGROUPS", tmp_path)
    groups = tmp_path / "own" / "cgroup"
    groups.parent.mkdir()
    monkeypatch.setattr(session, "OWN_GROUPS", groups)

    groups.write_text("0::/outer/inner\n")
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert session.memory_limit_bytes() >= machine
    (tmp_path / "outer" / "memory.max").write_text("4096\n")
    assert session.memory_limit_bytes() == 4096

    groups.write_text("3:cpu:/x\n2:memory:/docker/abc\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("8192\n")
    assert session.memory_limit_bytes() == 8192


def test_file_systems_in_memory_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(session, "_MOUNTS", mounts)
    number = f"{os.major(device)}:{os.minor(device)}"
    for kind, in_memory in (("tmpfs", True), ("ramfs", True), ("ext4", False)):
        mounts.write_text(
            "21 1 0:4294 / /proc rw shared:12 - proc proc rw\n"
            f"22 1 {number} / /a\\040b rw,relatime shared:1 - {kind} /dev/x rw\n"
        )
        assert session.is_in_memory(tmp_path) is in_memory
    mounts.write_text("")
    assert not session.is_in_memory(tmp_path)
    mounts.unlink()
    assert not session.is_in_memory(tmp_path)
