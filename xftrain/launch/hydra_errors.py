"""Makes Hydra raise its errors to the command line instead of printing them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from xftrain.utils.console import show_traceback
from xftrain.utils.processes import environment

# Marks that main(), not the user, set Hydra's HYDRA_FULL_ERROR; child processes inherit both.
_QUIET = "XFTRAIN_QUIET_ERRORS"


class _WithoutBoilerplate:
    """Stderr without Hydra's line about a failed job, which repeats the overrides."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        boilerplate = text.startswith("Error executing job with overrides")
        return len(text) if boilerplate else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def errors_raised() -> Iterator[None]:
    """Makes Hydra raise its errors instead of printing them, by setting HYDRA_FULL_ERROR."""
    ours = {} if _wants_traceback() else {"HYDRA_FULL_ERROR": "1", _QUIET: "1"}
    stderr, sys.stderr = sys.stderr, cast(TextIO, _WithoutBoilerplate(sys.stderr))
    try:
        with environment(ours):
            yield
    except Exception as error:
        if not ours:
            show_traceback(error)
        raise
    finally:
        sys.stderr = stderr


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and _QUIET not in os.environ
