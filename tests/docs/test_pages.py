"""Whatever a page names is there: files, functions, other pages, commands; and every kind of page has its form."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

from tests.docs.pages import (
    DECISIONS,
    GLOSSARY,
    PAGES,
    REPOSITORY,
    TOUR,
    anchors,
    blocks,
    functions_named,
    is_defined,
    links,
    paths_named,
    prose,
)

README = REPOSITORY / "README.md"

# Files that programs write, and that a fresh clone need not have.
WRITTEN = {
    "bench/results/latest.md": "make bench",
    "bench/results/partial.md": "make bench",
    "bench/results/profiles": "make bench",
}


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def pages() -> list[tuple[Path, str]]:
    """Every page with its text. Each test goes through all of them: what surrounds a test costs more than a page."""
    return [(page, page.read_text(encoding="utf-8")) for page in PAGES]


def test_functions_exist() -> None:
    missing = [
        f"{name_of(page)}:{line}: {name}"
        for page, text in pages()
        for line, name in functions_named(text)
        if not is_defined(name)
    ]
    assert not missing, "not defined:\n" + "\n".join(missing)


def test_files_exist() -> None:
    missing = [
        f"{name_of(page)}:{line}: {name}"
        for page, text in pages()
        for line, name in paths_named(text)
        if name not in WRITTEN
        and not (REPOSITORY / name).exists()
        and not (page.parent / name).exists()
    ]
    assert not missing, "no such file:\n" + "\n".join(missing)


def test_links_lead_somewhere() -> None:
    broken = []
    for page, text in pages():
        for line, target in links(text):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                if file.is_relative_to(REPOSITORY) and name_of(file) in WRITTEN:
                    continue
                broken.append(f"{name_of(page)}:{line}: {target}")
            elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
                broken.append(f"{name_of(page)}:{line}: {target} (no such heading)")
    assert not broken, "links that lead nowhere:\n" + "\n".join(broken)


def test_python_in_blocks_compiles() -> None:
    for page, text in pages():
        for block in blocks(text):
            if block.language == "python":
                ast.parse(textwrap.dedent(block.text), f"{name_of(page)}:{block.line}")


def test_commands_of_make_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page, text in pages():
        shown = "\n".join(block.text for block in blocks(text) if block.language in {"", "console"})
        named = re.findall(r"`make ([a-z-]+)", prose(text))
        named += re.findall(r"^(?:\$ )?make ([a-z-]+)", shown, re.MULTILINE)
        assert set(named) <= targets, name_of(page)


# --- README ------------------------------------------------------------------------------------------------------------


def test_readme_opens_with_the_two_commands() -> None:
    opening = README.read_text(encoding="utf-8").splitlines()[:20]
    assert opening[0] == "# shoal"
    assert any(line.startswith("make demo") for line in opening)
    assert any(line.startswith("make test") for line in opening)


def test_the_quickstart_prints_what_the_readme_says(tmp_path: Path) -> None:
    quickstart, said = (
        next(b.text for b in blocks(README.read_text(encoding="utf-8")) if b.language == language)
        for language in ("python", "text")
    )
    script = tmp_path / "quickstart.py"
    script.write_text(quickstart)
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == said


def test_readme_names_what_is_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = sorted(re.split(r"[<>=; \[]", line)[0] for line in project["dependencies"])
    named = ", ".join(installed[:-1]) + " and " + installed[-1]
    requirements = README.read_text(encoding="utf-8").partition("## Requirements")[2]
    assert named in " ".join(requirements.split())


def test_the_map_has_every_package() -> None:
    text = README.read_text(encoding="utf-8")
    packages = {path.parent.name for path in (REPOSITORY / "shoal").glob("*/__init__.py")}
    missing = [name for name in sorted(packages) if f"`shoal/{name}`" not in text]
    assert not missing


# --- glossary ----------------------------------------------------------------------------------------------------------


def glossary() -> list[tuple[str, str, str]]:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in GLOSSARY.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    return [(term, meaning, file.strip("`")) for term, meaning, file in rows[1:]]


def test_each_term_stands_once_and_in_order() -> None:
    terms = [term for term, _, _ in glossary()]
    assert terms == sorted(set(terms))
    assert len(terms) > 50


def test_each_term_is_used_by_the_file_that_owns_it() -> None:
    strangers = []
    for term, meaning, file in glossary():
        if file == "none":
            assert "Not built yet" in meaning
            continue
        text = (REPOSITORY / file).read_text(encoding="utf-8").lower()
        if term not in f"{file} {' '.join(text.split())}":
            strangers.append(f"{term}: {file}")
    assert not strangers, "terms that their files do not use:\n" + "\n".join(strangers)


def test_words_in_italics_are_in_the_glossary() -> None:
    terms = {term for term, _, _ in glossary()}
    # The tour says so at its beginning; plurals and emphasis are told apart by hand.
    told = set(re.findall(r"(?<![*\w])\*([a-z][a-z ]+[a-z])\*(?![*\w])", prose(TOUR.read_text())))
    unknown = {word for word in told if word not in terms and word.removesuffix("s") not in terms}
    assert unknown <= EMPHASIS


EMPHASIS = {"italics", "is", "leads"}


# --- decisions ---------------------------------------------------------------------------------------------------------

PARTS = ["Context", "Decision", "Consequences", "What would make us reconsider"]
RECORDS = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")


def test_each_decision_has_its_parts() -> None:
    for record in RECORDS:
        text = record.read_text(encoding="utf-8")
        assert text.startswith(f"# {record.name[:4]}. "), record.name
        assert "\nCode: `" in text.partition("\n## ")[0], record.name
        headings = re.findall(r"^## (.+)$", prose(text), re.MULTILINE)
        assert headings[: len(PARTS)] == PARTS, record.name


def test_decisions_are_numbered_and_listed() -> None:
    numbers = [int(record.name[:4]) for record in RECORDS]
    assert numbers == list(range(1, len(numbers) + 1))
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    for record in RECORDS:
        title = record.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        number, _, name = title.partition(". ")
        assert f"[{number}]({record.name}) | {name} |" in index


# --- the reading of pages ------------------------------------------------------------------------------------------------


def test_what_is_defined() -> None:
    for name in (
        "shoal/runtime/submitting.py::Submissions.submit",
        "shoal/runtime/submitting.py::Submissions",
        "shoal/core/task_records.py::State.QUEUED",
        "shoal/messages/node.py::UNIT",
        "shoal/config.py::Config.window_us",
    ):
        assert is_defined(name), name
    for name in (
        "shoal/runtime/submitting.py::Submissions.submitted",
        "shoal/runtime/submitting.py::submit",
        "shoal/runtime/owners.py::Owner",
        "shoal/runtime/submitting.py::Submissions.submit.process",
    ):
        assert not is_defined(name), name


def test_what_is_seen_on_a_page() -> None:
    page = """# A page

`shoal/ids.py`, `docs/tour.md::x` and `nothing/like/it`, `shoal/no such.py`, `README.md`, [a](b.md#c-d), [w](https://w.org/x).

```
`shoal/errors.py` [z](z.md) a/b.py::f
```

## C: d!
"""
    assert paths_named(page) == [(3, "shoal/ids.py"), (3, "docs/tour.md"), (3, "README.md")]
    assert links(page) == [(3, "b.md#c-d")]
    assert functions_named(page) == [(6, "a/b.py::f")]
    assert anchors(page) == {"a-page", "c-d"}
