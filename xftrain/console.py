"""The log's way to the console."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stdout` is at the time.

    A progress bar puts a stream there that draws lines above the bar. Lines that went past it were
    erased with the bar.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message."""
        self.stream = sys.stdout
        super().emit(record)


@contextmanager
def quiet(name: str = "xftrain", level: int = logging.WARNING) -> Iterator[None]:
    """A logger and those below it say less, as for scripts that print figures of their own."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
