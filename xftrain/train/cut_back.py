"""Loggers whose records can be truncated when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger


@runtime_checkable
class TruncatableLogger(Protocol):
    """A logger whose records are truncated to a checkpoint, so that each step is recorded once.

    Its file is created in the run folder only when training begins.

    Attributes:
        records: the name of its records in checkpoints.
        empty_position: the position in empty records, a count or a mapping from names to counts.
    """

    records: str
    empty_position: int | Mapping[str, int]

    def position(self) -> Any:
        """The position in its records, saved with a checkpoint; of the type of the empty one."""
        ...

    def cut_back(self, step: int, position: Any) -> None:
        """Removes the records that a run resumed at `step` will write again.

        Args:
            step: step of the checkpoint.
            position: value of `position` at its save; None if unknown.
        """
        ...

    def close(self) -> None:
        """Closes the file; the next record opens it again."""
        ...


def truncatable(loggers: list[Logger]) -> dict[str, TruncatableLogger]:
    """The loggers that can be truncated, by the names of their records."""
    found = [logger for logger in loggers if isinstance(logger, TruncatableLogger)]
    return {logger.records: logger for logger in found}
