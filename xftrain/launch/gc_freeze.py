"""Freezes imported objects, which live to the end, so that the garbage collector skips them."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_frozen() -> Iterator[None]:
    """Freezes all objects that exist at the end of this context.

    Traversing the libraries' objects took 2 of a short run's 6 s, mostly at the end of the process.
    """
    if "torch" in sys.modules:  # an earlier command ran, whose garbage would be frozen too
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
    """Whether Triton prints objects that are never freed to stderr, as with torch 2.15.

    Its bindings then use nanobind, which would print the list after the command's last sentence.
    """
    bindings = sys.modules.get("triton._C.libtriton")
    kinds = {type(value).__module__ for value in vars(bindings).values()} if bindings else set()
    return "nanobind" in kinds
