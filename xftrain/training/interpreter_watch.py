"""A process beside this one that ends it where one of its threads lets no other run.

A thread that hangs with the interpreter's lock held stops the watchdog's own thread as well, and a
timer of faulthandler cannot tell that from a process that was stopped for as long. The process
beside it counts its own ticks, and asks Linux whether this one is stopped.
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

_DUMP = signal.SIGTRAP  # faulthandler writes the stacks without the interpreter's lock
# Run without site-packages, in about 10 ms; it ends with its parent, whose end of the pipe closes.
_CODE = """
import os, select, signal, sys, time

parent, dump, limit_s, interval_s, words = *map(float, sys.argv[1:5]), sys.argv[5]
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
        os.write(2, words.encode())
    os.kill(parent, number)
    time.sleep(wait_s)
"""


@contextmanager
def interpreter_watched(
    limit_s: float, interval_s: float, stacks: Any, said: str
) -> Iterator[Callable[[], None]]:
    """Within it, this process ends by SIGABRT unless the returned function is called in time.

    Args:
        limit_s: seconds without a call, those in which this process is stopped left out.
        interval_s: seconds between two looks.
        stacks: an open file for the stacks of all threads.
        said: one sentence for standard error.
    """
    arguments = [os.getpid(), int(_DUMP), limit_s, interval_s, f"xftrain: {said}\n"]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
        )
    except OSError:  # no room for another process: the run is more important
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
