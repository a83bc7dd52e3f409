"""Starts the compilers of libraries outside the working folder, which may be untrusted.

Triton has gcc link a stub when its first kernel is launched. The linker takes `libgcc_s.so.1` of
the current folder before the system's, and the stub would then load that file and run its code,
also from Triton's cache in later runs. torch's CPU compiler has a folder of its own already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader
from types import ModuleType
from typing import Any

from xftrain.utils.import_hooks import Finder

# Modules that start a compiler, or a process that imports Triton, through `subprocess`.
_MODULES = (
    "triton.runtime.build",
    "triton.backends.nvidia.compiler",
    "torch._inductor.compile_worker.subproc_pool",
)
_FUNCTIONS = ("Popen", "call", "check_call", "check_output", "run")
_FLAGS = ("-I", "-L")  # of a compiler, before a folder
# Variables that name folders to both this process and one that it starts.
_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "TMPDIR")


def leave_working_folder() -> None:
    """Makes Triton and torch start their compilers in `/`, whose files are the system's.

    The working folder of this process stays, so that other threads do not notice.
    """
    for name in _VARIABLES:
        if value := os.environ.get(name):
            os.environ[name] = os.path.abspath(value)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(_MODULES, _execute))
    for name in _MODULES:  # imported before this package
        if name in sys.modules:
            _replace(sys.modules[name])


class _Finder(Finder):
    """Finds the modules that start a compiler."""


def _execute(loader: Loader, module: ModuleType) -> None:
    loader.exec_module(module)
    _replace(module)


def _replace(module: ModuleType) -> None:
    if vars(module).get("subprocess") is subprocess:
        vars(module)["subprocess"] = _SubprocessInRoot()


class _SubprocessInRoot:
    """Python's `subprocess`, whose programs start in `/`."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(subprocess, name)
        return partial(_start, found) if name in _FUNCTIONS else found


def _start(start: Callable[..., Any], command: Any, *args: Any, **options: Any) -> Any:
    """Starts a program in `/`, with its relative paths resolved against the working folder."""
    options.setdefault("cwd", "/")
    if isinstance(command, list | tuple):
        command = _absolute(command)
    return start(command, *args, **options)


def _absolute(command: Sequence[Any]) -> list[Any]:
    program, *rest = command
    if isinstance(program, str) and os.sep in program:
        program = os.path.abspath(program)
    return [program, *map(_absolute_flag, rest)]


def _absolute_flag(word: Any) -> Any:
    if isinstance(word, str) and word[:2] in _FLAGS and len(word) > 2:
        return word[:2] + os.path.abspath(word[2:])
    return word
