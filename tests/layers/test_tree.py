"""The source keeps the rules of style, and each rule objects to what it is there for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import tree_rules

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "shoal"
FOLDERS = [REPOSITORY / name for name in ("shoal", "tests", "bench", "examples")]


def sources(*folders: Path) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(REPOSITORY), path.read_text(encoding="utf-8")


def listed(found: list[tuple[Path, int, str]]) -> str:
    return "\n".join(f"{path}:{line}: {text}" for path, line, text in found)


def test_every_module_says_what_it_is_for() -> None:
    found = [
        (path, line, text)
        for path, source in sources(PACKAGE)
        for line, text in tree_rules.no_docstring(ast.parse(source))
    ]
    assert not found, listed(found)


def test_no_file_outgrows_its_idea() -> None:
    found = [
        (path, line, text)
        for path, source in sources(*FOLDERS)
        for line, text in tree_rules.too_long(source)
    ]
    assert not found, listed(found)


def test_prose_keeps_to_a_width() -> None:
    found = [
        (path, line, text)
        for path, source in sources(*FOLDERS)
        for line, text in tree_rules.wide_prose(source, ast.parse(source))
    ]
    assert not found, listed(found)


def test_no_exception_vanishes() -> None:
    found = [
        (path, line, text)
        for path, source in sources(*FOLDERS)
        for line, text in tree_rules.swallowed_exceptions(ast.parse(source))
    ]
    assert not found, listed(found)


def test_names_say_something() -> None:
    found = [
        (path, line, text)
        for path, source in sources(PACKAGE)
        for line, text in tree_rules.empty_names(path, ast.parse(source))
    ]
    assert not found, listed(found)


def test_every_exemption_gives_its_reason() -> None:
    found = [
        (path, line, text)
        for path, source in sources(*FOLDERS)
        for line, text in tree_rules.bare_exemptions(source)
    ]
    assert not found, listed(found)


# --- the rules themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler",
    [
        "except Exception:\n    pass",
        "except:\n    pass",
        "except BaseException:\n    ...",
        "except (OSError, Exception):\n    'never mind'",
        "except builtins.Exception as error:\n    pass",
    ],
)
def test_a_handler_that_swallows_is_seen(handler: str) -> None:
    tree = ast.parse(f"try:\n    f()\n{handler}\n")
    assert [line for line, _ in tree_rules.swallowed_exceptions(tree)] == [3]


@pytest.mark.parametrize(
    "handler",
    [
        "except OSError:\n    pass",
        "except Exception:\n    log()",
        "except Exception as error:\n    raise Other from error",
    ],
)
def test_a_handler_with_a_purpose_passes(handler: str) -> None:
    tree = ast.parse(f"try:\n    f()\n{handler}\n")
    assert list(tree_rules.swallowed_exceptions(tree)) == []


def test_suppressing_everything_is_seen() -> None:
    tree = ast.parse(
        "with contextlib.suppress(Exception):\n    f()\nwith suppress(OSError):\n    f()"
    )
    assert [line for line, _ in tree_rules.swallowed_exceptions(tree)] == [1]


@pytest.mark.parametrize(
    ("comment", "complaints"),
    [
        ("# noqa: BLE001 - user code may raise anything", 0),
        ("# noqa: S301, S506  # the peer holds the token", 0),
        ("# type: ignore[attr-defined]  # cloudpickle has no types", 0),
        ("# type: ignore[arg-type]  # noqa: PLR0133 - the stub is wrong here", 0),
        ("# noqa", 2),
        ("# noqa: BLE001", 1),
        ("# type: ignore[attr-defined]", 1),
        ("# type: ignore  # cloudpickle has no types", 1),
        ("# ruff: noqa", 2),
        ("# a remark that has nothing to do with it", 0),
    ],
)
def test_exemptions(comment: str, complaints: int) -> None:
    assert len(list(tree_rules.bare_exemptions(f"x = 1  {comment}\n"))) == complaints


def test_an_exemption_inside_a_string_is_text() -> None:
    assert list(tree_rules.bare_exemptions('x = "# noqa"\n')) == []


@pytest.mark.parametrize(
    ("path", "source", "complaints"),
    [
        ("shoal/util/__init__.py", "", 0),
        ("shoal/util/queue.py", "", 0),
        ("shoal/util/utils.py", "", 1),
        ("shoal/node/lease_manager.py", "", 1),
        ("shoal/core/node_info.py", "", 1),
        ("shoal/core/utilization.py", "class Utilization: ...", 0),
        ("shoal/core/leases.py", "class LeaseManager: ...\nclass IOHelper: ...", 2),
        ("shoal/core/leases.py", "class JobInfo: ...", 0),
    ],
)
def test_names(path: str, source: str, complaints: int) -> None:
    found = list(tree_rules.empty_names(Path(path), ast.parse(source)))
    assert len(found) == complaints


def test_length_and_docstring() -> None:
    assert list(tree_rules.too_long("\n" * tree_rules.MAX_LINES)) == []
    assert len(list(tree_rules.too_long("\n" * (tree_rules.MAX_LINES + 1)))) == 1
    assert list(tree_rules.no_docstring(ast.parse('"""What it owns."""'))) == []
    assert len(list(tree_rules.no_docstring(ast.parse("x = 1")))) == 1
    assert len(list(tree_rules.no_docstring(ast.parse('"""  """')))) == 1


def test_wide_prose() -> None:
    wide = "x" * tree_rules.MAX_PROSE
    source = f'"""{wide}\n\n{wide}\n"""\n# {wide}\na = "{wide}"\n# {wide[:-2]}\n'
    assert [line for line, _ in tree_rules.wide_prose(source, ast.parse(source))] == [1, 5]
