"""The layer order of the package, and a checker that reads it off the imports.

Imports point down; processes talk only in messages. Every import counts, also those inside functions and
`importlib.import_module("...")` with a name written out, because they couple just as much. Under `TYPE_CHECKING` the order
counts too: a lower layer that names a type of a higher one knows of it, and wants a Protocol of its own instead. Only the
rules about *modules of others* spare those imports: `random.Random` as the type of an injected generator is how a pure
core says what it is given.

The checker reads source and never imports it, so it runs on any folder of files: on the package, and on small made-up
trees that prove that it objects.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Final

PACKAGE: Final = "shoal"

# Low to high. A layer may import itself and what stands above it in this list. A name is a module or a package right
# under `shoal`; "" is `shoal/__init__.py`, the public names, which nothing below it may import.
LAYERS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("base", frozenset({"errors", "ids", "config", "clock", "lock", "version"})),
    ("messages", frozenset({"messages"})),
    ("core", frozenset({"core"})),
    ("kernel", frozenset({"kernel"})),
    ("wire", frozenset({"wire"})),
    ("serial", frozenset({"serial"})),
    ("store", frozenset({"store"})),
    ("control", frozenset({"control"})),
    ("node", frozenset({"node"})),
    ("runtime", frozenset({"runtime"})),
    ("worker", frozenset({"worker"})),
    ("api", frozenset({"api"})),
    ("util", frozenset({"util"})),
    ("public", frozenset({"", "exceptions", "actor", "dag"})),
    ("cli", frozenset({"cli", "__main__"})),
    ("dashboard", frozenset({"dashboard"})),
    ("testing", frozenset({"testing", "cluster_utils"})),
)
RANK: Final = {layer: rank for rank, (layer, _) in enumerate(LAYERS)}
LAYER_OF: Final = {name: layer for layer, names in LAYERS for name in names}

# Layers in the same process as user code. They meet the daemons through messages alone, though these stand lower: the
# head is launched by its module's name, in a process of its own.
CLIENT_LAYERS: Final = frozenset({"runtime", "worker", "api", "util"})
DAEMON_LAYERS: Final = frozenset({"control", "node"})

# The imports that point up, each with its reason. An entry that is not needed any more fails the test.
EXCEPTIONS: Final[dict[tuple[str, str], str]] = {
    ("shoal.node.zygote", "worker"): "a worker is a fork of the zygote, which must hold it ready",
}

# Standard modules by which a pure layer would stop being pure.
IMPURE: Final[dict[str, str]] = {
    **dict.fromkeys(("time", "datetime", "sched"), "a clock: take `now` as an argument"),
    **dict.fromkeys(("random", "secrets", "uuid"), "chance: take a generator or a counter"),
    **dict.fromkeys(
        (
            "asyncio",
            "threading",
            "_thread",
            "concurrent",
            "multiprocessing",
            "queue",
            "contextvars",
        ),
        "concurrency: take events, leave effects to the shell",
    ),
    **dict.fromkeys(
        ("socket", "socketserver", "select", "selectors", "ssl", "http", "urllib"),
        "network: leave an effect to the shell",
    ),
    **dict.fromkeys(
        ("os", "io", "pathlib", "shutil", "tempfile", "glob", "mmap", "fcntl", "sqlite3"),
        "files or the system: leave an effect to the shell",
    ),
    **dict.fromkeys(("subprocess", "signal", "ctypes"), "processes: leave an effect to the shell"),
    **dict.fromkeys(("logging", "warnings"), "reporting: leave an effect to the shell"),
    **dict.fromkeys(("pickle", "marshal", "shelve"), "user data never passes through a core"),
}
IMPURE_CALLS: Final = frozenset({"open", "print", "input"})
IMPURE_BASE: Final = "shoal.clock"

# layer -> modules from outside the standard library that it may use; layers not listed may use any.
THIRD_PARTY: Final[dict[str, frozenset[str]]] = {
    "core": frozenset(),
    "messages": frozenset({"msgspec"}),
}
PURE_LAYERS: Final = frozenset({"core", "messages"})

# Only the control store touches storage, and only there.
STORAGE: Final = f"{PACKAGE}.control.storage"
STORAGE_CLIENTS: Final = frozenset({"redis", "sqlite3"})

# Daemons never unpickle user data, so they do not get the means.
UNPICKLERS: Final = frozenset({"pickle", "cloudpickle", "marshal", "shelve", "dill"})


@dataclass(frozen=True)
class Import:
    """One module named by one statement: `name` is absolute, `typing_only` under TYPE_CHECKING."""

    name: str
    line: int
    typing_only: bool


@dataclass(frozen=True)
class Violation:
    """One broken rule."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def check_tree(root: Path) -> list[Violation]:
    """Every violation in the package whose folder is `root`, in order of files and lines."""
    modules = {module_name(root, path): path for path in sorted(root.rglob("*.py"))}
    used: set[tuple[str, str]] = set()
    violations: list[Violation] = []
    for module, path in modules.items():
        violations += _check_module(module, path, modules, used)
    violations += [
        Violation(modules[module], 1, f"no longer imports {layer}: take the exception away")
        for module, layer in EXCEPTIONS
        if module in modules and (module, layer) not in used
    ]
    return violations


def module_name(root: Path, path: Path) -> str:
    """The dotted name of a file of the package in `root`."""
    parts = (PACKAGE, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str | None:
    """The layer of a module of ours; None if no layer claims it."""
    _, _, rest = module.partition(".")
    return LAYER_OF.get(rest.partition(".")[0])


def _check_module(
    module: str, path: Path, modules: Iterable[str], used: set[tuple[str, str]]
) -> Iterator[Violation]:
    layer = layer_of(module)
    if layer is None:
        yield Violation(path, 1, f"{module} belongs to no layer: add it to LAYERS")
        return
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    imports = imports_of(tree, module, path.name == "__init__.py", modules)
    for found in sorted(imports, key=attrgetter("line")):
        top = found.name.partition(".")[0]
        if top == PACKAGE:
            text = _check_own(module, layer, found, used)
        else:
            text = _check_foreign(module, layer, top, found)
        if text:
            yield Violation(path, found.line, text)
    if layer in PURE_LAYERS:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in IMPURE_CALLS:
                    yield Violation(
                        path, node.lineno, f"{layer} is pure, and {node.func.id}() is I/O"
                    )


def _check_own(module: str, layer: str, found: Import, used: set[tuple[str, str]]) -> str | None:
    target = layer_of(found.name)
    if target is None:
        return f"imports {found.name}, which belongs to no layer: add it to LAYERS"
    if (module, target) in EXCEPTIONS:
        used.add((module, target))
        return None
    if RANK[target] > RANK[layer]:
        return f"{layer} imports {found.name} of {target}, a higher layer: imports point down"
    if layer in CLIENT_LAYERS and target in DAEMON_LAYERS:
        return f"{layer} imports {found.name} of {target}: processes talk only in messages"
    if layer in PURE_LAYERS and found.name == IMPURE_BASE:
        return f"{layer} imports {found.name}: cores take `now` as an argument"
    return None


def _check_foreign(module: str, layer: str, top: str, found: Import) -> str | None:
    if found.typing_only:
        return None
    if layer in PURE_LAYERS and top in IMPURE:
        return f"{layer} imports {found.name}, {IMPURE[top]}"
    allowed = THIRD_PARTY.get(layer)
    if allowed is not None and top not in allowed and top not in sys.stdlib_module_names:
        return f"{layer} imports {found.name}: beside the standard library it may use {_listed(allowed)}"
    if layer in DAEMON_LAYERS and top in UNPICKLERS:
        return f"{layer} imports {found.name}: daemons never unpickle user data"
    if top in STORAGE_CLIENTS and not module.startswith(STORAGE):
        return f"{layer} imports {found.name}: only {STORAGE} touches storage"
    return None


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


# --- reading imports ---------------------------------------------------------------------------------------------------


def imports_of(
    tree: ast.Module, module: str, is_package: bool, modules: Iterable[str]
) -> Iterator[Import]:
    """Every module that `module` imports, wherever in the file the import stands."""
    package = module if is_package else module.rpartition(".")[0]
    typing_only = _typing_only_lines(tree)
    known = frozenset(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            for name in _names(node, package, known):
                yield Import(name, node.lineno, node.lineno in typing_only)


def _names(
    node: ast.Import | ast.ImportFrom | ast.Call, package: str, known: frozenset[str]
) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = _resolve(module, level, package)
            for alias in names:
                # `from shoal.core import tasks` names a module, `from shoal.errors import TaskError` a thing in one.
                submodule = f"{base}.{alias.name}"
                is_module = submodule in known or (base == PACKAGE and alias.name in LAYER_OF)
                yield submodule if is_module else base
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield _resolve(name.lstrip("."), len(name) - len(name.lstrip(".")), package)


def _resolve(module: str | None, level: int, package: str) -> str:
    if level == 0:
        return module or ""
    parts = package.split(".")
    base = parts[: len(parts) - level + 1]
    return ".".join([*base, module] if module else base)


def _typing_only_lines(tree: ast.Module) -> frozenset[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return frozenset(lines)


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False
