"""The spill folder of a session: where it is, that it is ours alone, and that it goes with the session, by whomever it is removed."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from shoal.config import load_config
from shoal.runtime.launch import launch_head
from shoal.runtime.session_folder import Session, sweep_dead_sessions
from shoal.wire.session import folder_name, spill_path, spill_target
from tests.process.node_sessions import node_session, wait_for


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(str(tmp_path / "sessions"))


def is_private(path: str) -> bool:
    return stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_it_is_in_the_folder_of_the_session_unless_another_place_is_given(session: Session) -> None:
    path = session.make_spill()
    assert path == spill_path(session.directory)
    assert is_private(path)
    assert not os.path.islink(path)
    assert spill_target(session.directory) == ""
    session.remove()


def test_elsewhere_it_is_a_folder_of_its_own_and_goes_with_the_session(
    session: Session, tmp_path: Path
) -> None:
    place = tmp_path / "big" / "disk"
    path = Path(session.make_spill(str(place)))
    assert path.parent == place
    assert is_private(str(path))
    assert os.path.samefile(path, spill_path(session.directory))
    (path / "w00000001-0").write_bytes(b"an object")
    (place / "not-ours").touch()
    session.remove()
    assert os.listdir(place) == ["not-ours"]
    assert not os.path.lexists(session.directory)


def test_orphans_have_theirs_removed_by_the_next_start(session: Session, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    path = session.make_spill(str(place))
    Path(path, "w00000001-0").touch()
    # All of its processes are killed.
    session.unlock()
    assert sweep_dead_sessions(os.path.dirname(session.directory)) == 1
    assert os.listdir(place) == []
    assert not os.path.exists(session.shm_dir)


def test_a_link_to_what_cannot_be_ours_is_not_followed(session: Session, tmp_path: Path) -> None:
    for target in (tmp_path / "elsewhere", tmp_path / f"shoal-{os.getuid()}-s-00000000"):
        target.mkdir()
        (target / "kept").touch()
        os.symlink(target, spill_path(session.directory))
        assert spill_target(session.directory) == ""
        os.unlink(spill_path(session.directory))
    os.symlink(tmp_path / "elsewhere", spill_path(session.directory))
    session.remove()
    assert (tmp_path / "elsewhere" / "kept").exists()


@pytest.mark.parametrize("place", ["file", "planted", "url"])
def test_a_place_that_cannot_be_used_is_refused(
    session: Session, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    planted = tmp_path / "planted" / folder_name(session.directory)
    planted.mkdir(parents=True)
    planted.chmod(0o777)
    text = "s3://bucket/objects" if place == "url" else str(tmp_path / place)
    config = load_config({"spill_dir": text})
    with pytest.raises(ValueError, match=r"object_spilling_directory|address"):
        launch_head(session, config)
    assert not os.path.lexists(session.directory)
    assert not os.path.lexists(session.shm_dir)


def test_a_place_in_memory_is_told(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    shared = "/dev/shm"
    if not os.path.isdir(shared):
        pytest.skip("this system has no /dev/shm")
    with caplog.at_level(logging.WARNING, "shoal"):
        head = launch_head(session, load_config({"spill_dir": shared}))
    target = spill_target(session.directory)
    assert os.path.dirname(target) == shared
    head.stop()
    assert [r.getMessage() for r in caplog.records if "in memory too" in r.getMessage()]
    assert not os.path.exists(target)


def test_where_nothing_is_spilled_there_is_none() -> None:
    with node_session(settings={"spill": False}) as session:
        assert not os.path.lexists(spill_path(session.session.directory))


def test_it_goes_with_the_head_and_with_a_head_that_is_killed(tmp_path: Path) -> None:
    for kill in (False, True):
        with node_session(object_spilling_directory=str(tmp_path)) as session:
            path = Path(spill_target(session.session.directory))
            assert path.parent == tmp_path
            (path / "d0000001-0").touch()
            if kill:
                session.kill_head()
                wait_for(session.is_gone)
                wait_for(lambda path=path: not path.exists())
        assert os.listdir(tmp_path) == []
