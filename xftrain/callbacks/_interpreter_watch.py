"""A helper process that ends this one if a thread blocks the interpreter.

A thread that hangs while it holds the GIL blocks the watchdog's thread too. A timer of faulthandler
cannot distinguish this from a process that was stopped for that time. The helper process counts its
own ticks, and reads from /proc whether this process is stopped.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_DUMP = signal.SIGTRAP  # faulthandler writes the stacks without the GIL
# It starts without site-packages in about 10 ms, and ends when its parent's end of the pipe closes.
_CODE = """
import os, select, signal, sys, time

parent, dump, limit_s, interval_s, message = *map(float, sys.argv[1:5]), sys.argv[5]
parent, idle_s, at = int(parent), 0.0, time.monotonic()

def is_stopped():
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False

while idle_s <= limit_s:
    is_ready = select.select([0], [], [], interval_s)[0]
    before, at = at, time.monotonic()
    if is_ready:
        if not os.read(0, 4096):
            sys.exit()
        idle_s = 0.0
    elif not is_stopped():
        idle_s += min(at - before, interval_s)
for number, wait_s in ((int(dump), 1.0), (signal.SIGABRT, 5.0), (signal.SIGKILL, 0.0)):
    if os.getppid() != parent:
        break
    if number == signal.SIGABRT:
        os.write(2, message.encode())
    os.kill(parent, number)
    time.sleep(wait_s)
"""


@contextmanager
def interpreter_watched(
    limit_s: float, interval_s: float, stacks: Any, message: str
) -> Iterator[Callable[[], None]]:
    """Within this context, SIGABRT ends the process unless the yielded function is called in time.

    Args:
        limit_s: maximum time between calls in seconds, excluding time in which this process is
            stopped.
        interval_s: time between two checks in seconds.
        stacks: an open file for the stacks of all threads.
        message: one sentence for standard error.
    """
    arguments = [os.getpid(), int(_DUMP), limit_s, interval_s, f"xftrain: {message}\n"]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches only the run
        )
    except OSError:  # no process can be started: train without the helper
        yield lambda: None
        return
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    faulthandler.register(_DUMP, file=stacks, all_threads=True)
    try:

        def alive() -> None:
            with suppress(OSError):
                os.write(pipe, b".")

        yield alive
    finally:
        faulthandler.unregister(_DUMP)
        with suppress(OSError):
            process.stdin.close()
        process.wait()
