"""Processes that this package starts: how they end, and that they end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

Process = subprocess.Popen[bytes]

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


def rank() -> int:
    """Of this process among those that train one model; 0 where there is one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_rank() -> bool:
    """Whether whoever started this process made it one of those that train one model."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables, for this process and those that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def end(processes: Sequence[Process], *, patience_s: float, wait_s: float) -> None:
    """Waits for processes to end; then asks those that are left, and then ends them.

    Args:
        processes: that this one started.
        patience_s: until they are asked.
        wait_s: from then until they are killed.
    """
    for stop, seconds in ((None, patience_s), ("terminate", wait_s), ("kill", wait_s)):
        left = [process for process in processes if process.poll() is None]
        if stop:
            for process in left:
                getattr(process, stop)()
        deadline = time.monotonic() + seconds
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))


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
