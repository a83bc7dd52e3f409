"""A thread that hangs with the interpreter's lock held ends the process; a stopped one waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANG = """
import ctypes, sys, time
from xftrain.callbacks._interpreter_watch import interpreter_watched

with open(sys.argv[1], "w") as stacks, interpreter_watched(0.6, 0.2, stacks, "it hangs.") as alive:
    for _ in range(10):
        alive()
        print("alive", flush=True)
        time.sleep(0.1)
    if sys.argv[2] == "hang":
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter's lock
"""


def started(tmp_path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path / "stacks.txt"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_thread_that_lets_no_other_run_ends_the_process_with_its_stack(tmp_path: Path) -> None:
    process = started(tmp_path, "hang")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT
    assert errors.startswith("xftrain: it hangs.\n")
    assert 'File "<string>", line 11' in (tmp_path / "stacks.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_stopped_process_is_not_ended(tmp_path: Path) -> None:
    process = started(tmp_path, "end")
    assert process.stdout is not None and process.stdout.readline() == "alive\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
