"""Sends text to the loggers that can show it."""

from collections.abc import Iterable

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from xftrain.train.tracker import Tracker


def log_text(loggers: Iterable[Logger], tag: str, text: str, step: int = 0) -> None:
    """Sends text, shown unchanged, to TensorBoard and experiment trackers, but not to CSV files."""
    quoted = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown's code block
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, quoted, step)
        elif isinstance(logger, Tracker):
            logger.show_text(tag, text, step)
