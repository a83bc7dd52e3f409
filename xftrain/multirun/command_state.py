"""What the running command has decided before Hydra calls its main function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from xftrain.folders.reserved import ReservedFolders


@dataclass
class Sweep:
    """The state of a sweep, which is empty until the sweep starts.

    Attributes:
        folder: the sweep's folder; None before its first job, and in a single run.
        is_stored: whether a database stores the trials, so that the search resumes by itself.
    """

    folder: Path | None = None
    is_stored: bool = False


@dataclass(frozen=True)
class CommandState:
    """The state of one command: Hydra's callbacks fill it in, and the command line reads it.

    Attributes:
        sweep: the sweep that the command runs, if any.
        reserved: the folders that the command has locked.
    """

    sweep: Sweep = field(default_factory=Sweep)
    reserved: ReservedFolders = field(default_factory=ReservedFolders)


# A context variable, since Hydra builds its callbacks and passes them no object of the command.
_of_command: ContextVar[CommandState] = ContextVar("state_of_command")


@contextmanager
def state_of_command() -> Iterator[CommandState]:
    """Within this context, `current_state` returns the state that this yields."""
    token = _of_command.set(CommandState())
    try:
        yield _of_command.get()
    finally:
        _of_command.reset(token)


def current_state() -> CommandState:
    """The state of the running command; a new empty one outside a command."""
    return _of_command.get(CommandState())
