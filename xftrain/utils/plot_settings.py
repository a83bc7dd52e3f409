"""Keeps matplotlib from reading `matplotlibrc` in the working folder, which may be untrusted.

When it is imported, as Lightning's metrics do in every training run, matplotlib reads that file
first: a FIFO of that name would block it, some versions execute code in it, and its resolution
could exhaust memory. This module imports nothing slow.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader
from importlib.util import find_spec
from types import ModuleType

from xftrain.errors import ConfigError, first_line
from xftrain.utils.import_hooks import Finder
from xftrain.utils.processes import environment
from xftrain.utils.working_folder import hidden_working_folder

_BACKEND = "MPLBACKEND"
# Variables that name matplotlib's files; relative paths are below the user's working folder.
_VARIABLES = ("MATPLOTLIBRC", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


def ignore_working_folder() -> None:
    """Makes later imports of matplotlib ignore the working folder's settings."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(("matplotlib",), _execute_in_root))


class _Finder(Finder):
    """Finds the installed matplotlib, and imports it in the root folder."""


def _execute_in_root(loader: Loader, module: ModuleType) -> None:
    """Executes the module, which reads its settings only then."""
    with hidden_working_folder(_VARIABLES), environment(_importable_backend()):
        try:
            loader.exec_module(module)
        except ValueError as error:
            if _BACKEND not in os.environ:
                raise
            raise ConfigError(
                f"{_BACKEND}={os.environ[_BACKEND]} is refused by matplotlib "
                f"({first_line(error)}): unset the variable."
            ) from error


def _importable_backend() -> dict[str, str]:
    """Another value for `MPLBACKEND` if its module is missing, which would end every import.

    A notebook's kernel passes its own backend on to all child processes, whatever Python they run.
    """
    name = os.environ.get(_BACKEND, "")
    prefix, _, module = name.partition("module://")
    if prefix or not module or find_spec(module.partition(".")[0]) is not None:
        return {}
    return {_BACKEND: "agg"}
