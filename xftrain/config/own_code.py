"""Digests of the source code of a user's own classes, which may change while their names stay.

Benchmark rows and checkpoints record them, so that a changed class is noticed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_PACKAGE = Path(__file__).resolve().parents[1]


def own_code(*options: Any) -> dict[str, str]:
    """A digest of the source code behind each `_target_` in these options, by target.

    It covers the module of the class and the modules that it imports, directly or indirectly,
    except installed packages and this one. The classes are imported, so they must be checked first.

    Args:
        options: nodes of the configuration, or containers of nodes.
    """
    targets = sorted({target for one in options for target in _targets(one)})
    return {target: _digest(files) for target in targets if (files := _sources(target))}


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(target := value.get("_target_"), str):
            yield target
        for child in value.values():
            yield from _targets(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _targets(child)


@cache  # an imported module keeps its imports
def _sources(target: str) -> dict[str, Path]:
    """The files behind a target, by module name; empty if it cannot be imported."""
    try:
        made = pkgutil.resolve_name(target)
    except Exception:  # importing a user's module can raise anything; building it reports that
        return {}
    return _files(sys.modules.get(getattr(made, "__module__", None) or ""))


def _digest(files: Mapping[str, Path]) -> str:
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes() if path.is_file() else b""
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def _files(first: ModuleType | None) -> dict[str, Path]:
    """The files of a module and of all modules that it imports, by module name."""
    files: dict[str, Path] = {}
    todo = [] if first is None else [first]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        path = Path(getattr(module, "__file__", None) or "")
        if module.__name__ in seen or not path.is_file():
            continue
        seen.add(module.__name__)
        if module is first or not _is_installed(path.resolve()):
            files[module.__name__] = path
            todo += [sys.modules[name] for name in _imported(module, path) if name in sys.modules]
    return files


def _imported(module: ModuleType, path: Path) -> set[str]:
    """The names that a module may import; some are of classes and functions in other modules."""
    names: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes() if path.suffix == ".py" else b"")
    except (SyntaxError, ValueError):  # the file has changed since it was imported
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                dots = "." * node.level
                base = importlib.util.resolve_name(dots + base, module.__package__ or None)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    packages = {name[:at] for name in names for at, letter in enumerate(name) if letter == "."}
    return names | packages


@cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    places = [paths[name] for name in _INSTALLED]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return (_PACKAGE, *(Path(place).resolve() for place in places))


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _installed_folders())
