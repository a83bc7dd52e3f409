"""What a figure looks like is never decided by a file of the working folder, which may be anyone's.

matplotlib reads `matplotlibrc` of the working folder before any other when it is imported, which
Lightning's metrics do in every training run: a FIFO under that name was waited for, some versions
ran code in it, and a figure could have as many dots as it said. Imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from xftrain.working_folder import out_of_sight

_NAME = "matplotlib"
# Variables that name its files; a relative path in one is the user's, from the working folder.
_VARIABLES = ("MATPLOTLIBRC", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


def ignore_working_folder() -> None:
    """From now on, whoever imports matplotlib does so without the working folder's settings."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds matplotlib where it is, and has it imported out of sight of the working folder."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python asks this finder first."""
        spec = PathFinder.find_spec(name, path, target) if name == _NAME else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs a module in the root folder; a file named `matplotlibrc` there is the system's."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module, not yet run."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, which reads its settings once, then."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._inner  # as without this package
        with out_of_sight(_VARIABLES):
            self._inner.exec_module(module)
