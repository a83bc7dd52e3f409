"""Routes Lightning's messages to xftrain's log, without duplicates and advertisements."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

# Patterns of messages to drop, each with the reason why it does not help the user.
_DROPPED_WARNINGS = (
    r"Experiment logs directory .* exists and is not empty",  # the folder of the run, by design
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
    r".*does not have many workers",  # the main process makes batches, see data/loader.py
    r"The dataloader, .*, does not have",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # already summed over ranks
    r".*`IterableDataset` has `__len__` defined",
)


def quiet_lightning() -> None:
    """Keeps Lightning's warnings and errors, and drops its informational messages."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # Lightning's handlers would duplicate every line
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    # keep messages of Lightning's callbacks, which run only if the user has added them
    logging.getLogger("lightning.pytorch.callbacks").setLevel(logging.INFO)
    for pattern in _DROPPED_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    if not isinstance(threading.excepthook, _QuietWriters):
        threading.excepthook = _QuietWriters(threading.excepthook)


class _QuietWriters:
    """A thread hook that drops the traceback of the thread that writes TensorBoard's events.

    The error of that thread, such as a full disk, is raised again in the logging thread.
    """

    def __init__(self, next_hook: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._next_hook = next_hook

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._next_hook(args)
