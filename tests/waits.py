"""Makes CUDA calls raise that wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def refuse_waits() -> None:
    """Turns the refusal on, in this process, until `allow_waits`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that its debug mode is a prototype
        torch.cuda.set_sync_debug_mode("error")


def allow_waits() -> None:
    """Turns the refusal off."""
    torch.cuda.set_sync_debug_mode("default")


@contextmanager
def waits_refused() -> Iterator[None]:
    """Refuses waits in its block."""
    try:
        refuse_waits()
        yield
    finally:
        allow_waits()
