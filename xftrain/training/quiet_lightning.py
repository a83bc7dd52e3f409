"""Lightning's messages through our own log, once each, without its advertisements."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

# (message pattern, why it is of no use to the person who reads our log)
_NAMED_WARNINGS = (
    r"Experiment logs directory .* exists and is not empty",  # it is the run folder, by design
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
    r".*does not have many workers",  # batches are made in place, see data/loader.py
    r"The dataloader, .*, does not have",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # they are sums over all ranks
    r".*`IterableDataset` has `__len__` defined",
)


def quiet_lightning() -> None:
    """Warnings and errors stay; what Lightning says of itself goes."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # its own, which doubles every line
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    # a callback of Lightning's runs where the user has added it, and what it says is its output
    logging.getLogger("lightning.pytorch.callbacks").setLevel(logging.INFO)
    for pattern in _NAMED_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    if not isinstance(threading.excepthook, _QuietWriters):
        threading.excepthook = _QuietWriters(threading.excepthook)


class _QuietWriters:
    """Leaves out the traceback of the thread that writes TensorBoard's events.

    Its error, as on a full disk, is raised again in the thread that logs.
    """

    def __init__(self, others: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._others = others

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._others(args)
