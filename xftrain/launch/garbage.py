"""Keeps Python's searches for garbage away from what is imported, which lives to the end."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_left_out() -> Iterator[None]:
    """After this context, searches for garbage leave out what lives by then.

    Going through the libraries took 2 of a short run's 6 s, most of them at the end of the process.
    """
    if "torch" in sys.modules:  # by a command before this one, whose garbage would stay as well
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if _lists_leaks():
            atexit.register(gc.unfreeze)


def _lists_leaks() -> bool:
    """Whether Triton lists on stderr its objects that nobody frees, as with torch 2.15.

    Its bindings are made with nanobind then, whose list would follow the command's last sentence.
    """
    bindings = sys.modules.get("triton._C.libtriton")
    kinds = {type(value).__module__ for value in vars(bindings).values()} if bindings else set()
    return "nanobind" in kinds
