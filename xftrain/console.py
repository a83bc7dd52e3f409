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
def quiet() -> Iterator[None]:
    """The log has warnings alone in it, for scripts that print figures of their own."""
    logger = logging.getLogger("xftrain")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
