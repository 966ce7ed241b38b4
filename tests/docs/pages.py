"""What the pages of the repository say, in a form that tests can hold them to.

A page is Markdown. Four things in it are looked at: fenced blocks of code; links to other pages; names in backquotes that are
a path of the repository; and names of the form `path::function`, where `function` is what is defined at that place of that
file (`Owner.submit`, or a class, or a constant).

In the tour, the items of a numbered list are *steps*::

    1. **driver** `shoal/api/objects.py::get`
       what happens there

A chapter is what stands under a heading of the second level. It has one block of Python, the program, and steps; the
functions that its steps name are called in that order in each process when the program runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]

# Every page that belongs to the repository, wherever it stands.
PAGES: Final = tuple(
    sorted(
        [
            *REPOSITORY.glob("*.md"),
            *(
                page
                for folder in ("docs", "bench", "examples", "tests")
                for page in (REPOSITORY / folder).rglob("*.md")
            ),
        ]
    )
)
TOUR: Final = REPOSITORY / "docs" / "tour.md"
GLOSSARY: Final = REPOSITORY / "docs" / "glossary.md"
DECISIONS: Final = REPOSITORY / "docs" / "design"

_FENCE: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_STEP: Final = re.compile(r"\*\*(?P<process>[a-z ]+)\*\* `(?P<function>[\w/.]+::[\w.]+)`$")
_ITEM: Final = re.compile(r"^(?P<number>\d+)\. (?P<text>.*)$")
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_FUNCTION: Final = re.compile(r"(?P<path>[\w/.-]+\.py)::(?P<name>[\w.]+)")
_LINK: Final = re.compile(r"\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)


class PageError(Exception):
    """A page is not in the form that it should have."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Step:
    """One step of the tour: `function` as `path::name`."""

    number: int
    process: str
    function: str
    line: int


@dataclass(frozen=True)
class Chapter:
    """A program, and what it does step by step."""

    title: str
    program: str
    steps: tuple[Step, ...]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["text"], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """A page without its fenced blocks, with the same lines."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def chapters(text: str) -> list[Chapter]:
    """The chapters of the tour that have steps.

    Raises:
        PageError: an item of a numbered list is no step, steps are misnumbered, or a chapter has no program of its own.
    """
    found = []
    line = 1
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        title = part.partition("\n")[0].removeprefix("## ")
        steps = tuple(_steps(prose(part), line))
        if steps:
            programs = [block.text for block in blocks(part) if block.language == "python"]
            if len(programs) != 1:
                raise PageError(f"{title!r} has steps and {len(programs)} programs instead of one")
            found.append(Chapter(title, programs[0], steps))
        line += part.count("\n")
    return found


def _steps(text: str, first_line: int) -> Iterator[Step]:
    number = 0
    for line, content in enumerate(text.split("\n"), first_line):
        item = _ITEM.match(content)
        if item is None:
            continue
        step = _STEP.match(item["text"])
        number += 1
        if step is None:
            raise PageError(
                f"line {line} is an item of a numbered list but no step (**process** `path::function`): {content}"
            )
        if int(item["number"]) != number:
            raise PageError(f"line {line} has the number {item['number']} and should have {number}")
        yield Step(number, step["process"], step["function"], line)


def functions_named(text: str) -> list[tuple[int, str]]:
    """Every `path::function` in a page, with its line; in blocks too, since pictures name functions as well."""
    return [
        (text.count("\n", 0, found.start()) + 1, found[0]) for found in _FUNCTION.finditer(text)
    ]


def is_defined(function: str) -> bool:
    """Whether `path::name` is a function, class or constant of a file of the repository."""
    path, _, name = function.partition("::")
    file = REPOSITORY / path
    return file.is_file() and name in _definitions(file)


@cache
def _definitions(file: Path) -> frozenset[str]:
    def inside(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield prefix + name
                case ast.ClassDef(name=name, body=members):
                    yield prefix + name
                    yield from inside(members, f"{prefix}{name}.")
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name
                case ast.Assign(targets=targets):
                    yield from (prefix + t.id for t in targets if isinstance(t, ast.Name))

    return frozenset(inside(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def paths_named(text: str) -> list[tuple[int, str]]:
    """Every name in backquotes, outside of blocks, that is a path by its looks: it begins with a folder or is a file of
    the repository's top, and has no blanks or wildcards."""
    tops = {entry.name for entry in REPOSITORY.iterdir()}
    found = []
    text = prose(text)
    for span in _SPAN.finditer(text):
        name = span[1].partition("::")[0]
        if not re.fullmatch(r"[\w./-]+", name):
            continue
        looks = name.endswith((".py", ".md", ".toml")) or "/" in name
        if looks and name.partition("/")[0] in tops | {
            "docs",
            "shoal",
            "tests",
            "bench",
            "examples",
        }:
            found.append((text.count("\n", 0, span.start()) + 1, name))
    return found


def links(text: str) -> list[tuple[int, str]]:
    """The targets of all links of a page that do not leave the repository."""
    text = prose(text)
    return [
        (text.count("\n", 0, found.start()) + 1, found["target"])
        for found in _LINK.finditer(text)
        if "://" not in found["target"] and not found["target"].startswith("mailto:")
    ]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", found["text"].lower()).replace(" ", "-")
        for found in _HEADING.finditer(prose(text))
    }
