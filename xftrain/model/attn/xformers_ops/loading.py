"""Imports xFormers, and works around problems of that import.

There are three problems, each seen with xformers 0.0.35:
- its C++ library is linked to the CUDA 12 runtime, which a torch for CUDA 13 does not include; if
  the library does not load, every CUDA operator is refused, even those that do not use it;
- a package that makes `flash_attn` a namespace (flash-attn-4) breaks the import;
- its warnings are blocks of text that name neither cause nor remedy.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from xftrain.utils.console import raised_log_level

log = logging.getLogger(__name__)

_RUNTIME_PACKAGE = "nvidia-cuda-runtime-cu12"


def is_installed() -> bool:
    """Whether xFormers is installed, without importing it."""
    return importlib.util.find_spec("xformers") is not None


def reason_missing() -> str | None:
    """Why xFormers cannot be used, and what to install; None if it can."""
    try:
        xformers_ops()
    except ImportError as error:
        return str(error)
    return None


@cache
def xformers_ops() -> ModuleType:
    """The module `xformers.ops`, imported once.

    Raises:
        ImportError: xFormers is missing or too new; the message says what to install.
    """
    if not is_installed():
        raise ImportError("xFormers is not installed: pip install xformers==0.0.35")
    _preload_cuda12_runtime()
    with _without_namespace_flash_attn(), raised_log_level("xformers", logging.ERROR):
        ops = importlib.import_module("xformers.ops")
    if not hasattr(ops, "memory_efficient_attention"):
        raise ImportError(
            "this xFormers has no memory_efficient_attention (it left the package after 0.0.35): "
            "pip install xformers==0.0.35"
        )
    _warn_about_cpp_library()
    return ops


def _preload_cuda12_runtime() -> None:
    """Loads libcudart.so.12 for xFormers' library if torch includes another version."""
    if torch.version.cuda is None or torch.version.cuda.startswith("12."):
        return
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("cuda_runtime/lib/libcudart.so.12*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return


def _warn_about_cpp_library() -> None:
    """Logs one line in place of xFormers' warnings if its C++ library did not load."""
    cpp_lib = importlib.import_module("xformers._cpp_lib")
    if torch.cuda.is_available() and cpp_lib._cpp_library_load_exception is not None:
        log.warning(
            "xFormers' C++ library did not load, so it runs no CUDA kernel: it needs the CUDA 12 "
            "runtime beside torch %s; pip install %s",
            torch.__version__,
            _RUNTIME_PACKAGE,
        )


@contextmanager
def _without_namespace_flash_attn() -> Iterator[None]:
    """Hides a `flash_attn` that is not FlashAttention 2 while xFormers imports it."""
    name = "flash_attn"
    spec = importlib.util.find_spec(name) if name not in sys.modules else None
    hide = spec is not None and spec.origin is None
    if hide:
        sys.modules[name] = None  # type: ignore[assignment]  # None makes an import fail
    try:
        yield
    finally:
        if hide:
            del sys.modules[name]
