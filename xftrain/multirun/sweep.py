"""The sweep that this command runs: Hydra's callbacks fill it in, and the command line ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sweep:
    """The state of a sweep, which is empty until the sweep starts.

    Attributes:
        folder: the sweep's folder; None before its first job, and in a single run.
        is_stored: whether a database stores the trials, so that the search resumes by itself.
    """

    folder: Path | None = None
    is_stored: bool = False


# A context variable, since Hydra builds its callbacks and passes them no object of the command.
_of_command: ContextVar[Sweep] = ContextVar("sweep_of_command")


@contextmanager
def sweep_of_command() -> Iterator[Sweep]:
    """Within this context, `current_sweep` returns the sweep that this yields."""
    token = _of_command.set(Sweep())
    try:
        yield _of_command.get()
    finally:
        _of_command.reset(token)


def current_sweep() -> Sweep:
    """The sweep of the running command; a new empty one outside a command."""
    return _of_command.get(Sweep())
