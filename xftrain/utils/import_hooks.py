"""Replaces how chosen library modules are executed, whichever code imports them first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Execute = Callable[[Loader, ModuleType], None]


class Finder(MetaPathFinder):
    """Finds modules with Python's other finders, and executes them with a given function.

    Args:
        names: full names of the modules.
        execute: called with a module's own loader and the module; it calls `exec_module`.
    """

    def __init__(self, names: Collection[str], execute: Execute) -> None:
        self._names, self._execute = names, execute

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module's spec; Python calls it before its own finders."""
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._execute)
                return spec
        return None


class _Loader(Loader):
    """Executes a module with a given function, which receives the module's own loader."""

    def __init__(self, inner: Loader, execute: Execute) -> None:
        self._inner, self._execute = inner, execute

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Creates the module without executing it."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Executes the module."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = (
                self._inner
            )  # as if this package were absent
        self._execute(self._inner, module)
