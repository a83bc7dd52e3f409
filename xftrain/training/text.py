"""Text for the loggers that show it."""

from collections.abc import Iterable

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from xftrain.training.tracker import Tracker


def log_text(loggers: Iterable[Logger], tag: str, text: str, step: int = 0) -> None:
    """Text as it is, for TensorBoard and experiment trackers; a CSV file has no place for it."""
    quoted = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown's code block
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, quoted, step)
        elif isinstance(logger, Tracker):
            logger.show_text(tag, text, step)
