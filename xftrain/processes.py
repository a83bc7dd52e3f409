"""Processes that this package starts: how they end, and that they end with their parent."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals) -> None:
    """Asks Linux to send this process a signal when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def cause_of_death(code: int | None) -> str:
    """What an exit code says, in words."""
    if code is None or code >= 0:
        return f"the process ended with code {code}"
    said = f"the process was ended by {signal.Signals(-code).name}"
    return said + ", as the system does where memory runs out" * (code == -signal.SIGKILL)


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """SIGTERM as SystemExit, so that whoever waits for other processes can end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
