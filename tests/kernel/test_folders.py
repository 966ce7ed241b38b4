"""Whose a folder is: kinds, links, and what others may do with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.kernel.folders import is_ours


def test_a_folder_of_ours_is(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    assert is_ours(folder)
    assert is_ours(str(folder), refused_bits=0o077)
    folder.chmod(0o755)
    assert is_ours(folder, refused_bits=0o022)
    assert not is_ours(folder, refused_bits=0o077)


def test_links_and_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "file").touch()
    assert not is_ours(tmp_path / "link")
    assert not is_ours(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        is_ours(tmp_path / "nothing")


def test_those_of_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert not is_ours(tmp_path)
