"""Rules of style that a machine can see in the source, each as a function from a file to what is wrong in it.

They say what no linter of the toolbox says: that a file of more than 600 lines holds two ideas, that a name like `utils` says
nothing, that an exemption gives its reason where it stands.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MAX_LINES: Final = 600
MAX_PROSE: Final = 140

# Words that name no idea. `shoal.util` and `shoal.cluster_utils` are public and bear the names that users of Ray know.
EMPTY_WORDS: Final = frozenset(
    {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
)
# In names of modules these say nothing either; in names of things they are often the field's own (job_info, data plane).
EMPTY_MODULE_WORDS: Final = EMPTY_WORDS | {"data", "info"}
PUBLIC_EXCEPTIONS: Final = frozenset({"shoal/util", "shoal/cluster_utils"})

_DIRECTIVE: Final = re.compile(
    r"""\#\s*(?:
        (?P<noqa>(?:ruff:\s*|flake8:\s*)?noqa)(?P<noqa_codes>:\s*[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*)?
      | (?P<type>type:\s*ignore)(?P<type_codes>\[[^\]]+\])?
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_MIN_REASON_WORDS: Final = 2


def too_long(source: str) -> Iterator[tuple[int, str]]:
    """A file that outgrew one idea."""
    lines = source.count("\n")
    if lines > MAX_LINES:
        yield lines, f"{lines} lines, more than {MAX_LINES}: which two ideas does it hold?"


def wide_prose(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines of docstrings and comments that nobody can read at a glance. (Code the formatter keeps short, but for strings.)"""
    lines = source.splitlines()
    prose = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROSE and (number in prose or line.lstrip().startswith("#")):
            yield number, f"{len(line)} characters of prose in one line, more than {MAX_PROSE}"


def no_docstring(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A module that does not say what it owns, guarantees and leaves to others."""
    if not (ast.get_docstring(tree) or "").strip():
        yield 1, "no module docstring: say what it owns, guarantees and leaves to others"


def swallowed_exceptions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Handlers and suppressions that make any exception vanish."""
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=kind, body=body) if _is_broad(kind) and _is_empty(body):
                yield (
                    node.lineno,
                    "catches everything and does nothing: name the exception, or report it",
                )
            case ast.Call(
                func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args
            ) if any(_is_broad(arg) for arg in args):
                yield node.lineno, "suppresses everything: name the exception"


def _is_broad(kind: ast.expr | None) -> bool:
    match kind:
        case None:
            return True
        case ast.Name(id="Exception" | "BaseException"):
            return True
        case ast.Attribute(attr="Exception" | "BaseException"):
            return True
        case ast.Tuple(elts=members):
            return any(_is_broad(member) for member in members)
    return False


def _is_empty(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def empty_names(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Modules and classes whose name holds a word that says nothing. `path` is relative to the repository."""
    folder_or_file = path.parent if path.name == "__init__.py" else path.with_suffix("")
    if folder_or_file.as_posix() not in PUBLIC_EXCEPTIONS:
        for word in _words(folder_or_file.name) & EMPTY_MODULE_WORDS:
            yield 1, f"the module's name says {word!r}, which names no idea"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for word in _words(node.name) & EMPTY_WORDS:
                yield node.lineno, f"class {node.name}: {word!r} names no idea"


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def bare_exemptions(source: str) -> Iterator[tuple[int, str]]:
    """`# noqa` and `# type: ignore` without a code, or without a reason on the same line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not (found := list(_DIRECTIVE.finditer(token.string))):
            continue
        for match in found:
            what = "noqa" if match["noqa"] else "type: ignore"
            if not (match["noqa_codes"] or match["type_codes"]):
                yield token.start[0], f"{what} without a code exempts from everything"
        reason = _DIRECTIVE.sub("", token.string)
        if len(re.findall(r"\w+", reason)) < _MIN_REASON_WORDS:
            yield token.start[0], "an exemption without its reason on the same line"
