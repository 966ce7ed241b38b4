"""Settings: where they come from, which wins, and what is said of those that do not exist."""

from __future__ import annotations

import pytest

from shoal.config import _IN_INIT, _RAYS_NAMES, Config, load_config


def test_overrides_win_over_the_environment_and_that_over_defaults() -> None:
    assert load_config({}, {}) == Config()
    environ = {"SHOAL_WINDOW_TASKS": "7", "SHOAL_spill": "false", "SHOAL_flush_us": "3"}
    config = load_config({"flush_us": 5}, environ)
    assert (config.window_tasks, config.spill, config.flush_us) == (7, False, 5)


def test_in_capitals_a_variable_wins() -> None:
    environ = {"SHOAL_window_tasks": "7", "SHOAL_WINDOW_TASKS": "8"}
    assert load_config({}, environ).window_tasks == 8


@pytest.mark.parametrize("variable", ["SHOAL_WINDOW_TASKS", "SHOAL_window_tasks"])
def test_a_value_that_is_none_is_refused_by_the_name_of_its_variable(variable: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}='many' is not a valid int"):
        load_config({}, {variable: "many"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("object_spilling_config", "what Ray calls so is nearest to spill_dir here"),
        ("max_direct_call_object_size", r"inline_limit_bytes here \(int, 102400 by default"),
        ("object_store_memory", "`shoal start --object-store-memory`"),
        ("object_spilling_directory", r"init\(object_spilling_directory=…\)"),
        ("spil_dir", "did you mean spill_dir"),
        ("qqq", "the settings are: answers_unread_bytes, "),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_what_to_do(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"no setting '{name}'; .*{words}"):
        load_config({name: 1}, {})


def test_what_is_named_instead_is_there() -> None:
    fields = set(Config.__struct_fields__)
    assert set(_RAYS_NAMES.values()) <= fields
    assert not fields & (_RAYS_NAMES.keys() | _IN_INIT)
