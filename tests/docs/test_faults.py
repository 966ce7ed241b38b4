"""The fault matrix has every cell, and each is a test that says so by its name. (That the tests exist, `test_pages.py` checks.)"""

from __future__ import annotations

import re

from tests.docs.pages import REPOSITORY, functions_named

PAGE = REPOSITORY / "docs" / "faults.md"
FAULTS = ["owner", "borrower", "executor", "node", "disk_full", "shm_full"]
MOMENTS = ["idle", "mid_transfer", "mid_spill"]
CELLS = [[f"test_{fault}_{moment}" for moment in MOMENTS] for fault in FAULTS]


def test_the_table_has_all_cells() -> None:
    rows = re.findall(
        r"^\| (?:the|a|an|shared) .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [re.findall(r"`(\w+)`", row) for row in rows] == CELLS


def test_each_cell_is_explained_once_with_its_test() -> None:
    named = [name for _, name in functions_named(PAGE.read_text(encoding="utf-8"))]
    cells = [cell for row in CELLS for cell in row]
    assert [found for name in named if (found := name.partition("::")[2]) in cells] == cells
