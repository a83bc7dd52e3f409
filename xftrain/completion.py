"""Completion in a shell knows dotted groups too: Hydra's own completes `model/attn=` alone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Collection, Iterator


@contextlib.contextmanager
def dotted_groups(groups: Callable[[], Collection[str]]) -> Iterator[None]:
    """While Hydra answers a shell, `model.attn=` is asked as `model/attn=` and answered dotted.

    Args:
        groups: gives the slashed names of all groups; called where a shell asks.
    """
    line = os.environ.get("COMP_LINE", "")
    before, blank, word = line.rpartition(" ")
    dotted, equals, rest = word.partition("=")
    group = dotted.replace(".", "/")
    if not equals or "." not in dotted or group not in groups():
        yield
        return
    os.environ["COMP_LINE"] = f"{before}{blank}{group}={rest}"  # as long as it was
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        os.environ["COMP_LINE"] = line
        sys.stdout.write(answer.getvalue().replace(f"{group}=", f"{dotted}="))
