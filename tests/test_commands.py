"""What a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
from xftrain import commands

with commands._without_scipy_signal():
    import scipy.signal

    assert hasattr(scipy.signal, "hamming") and not hasattr(scipy.signal, "lfilter")
import scipy.signal

assert hasattr(scipy.signal, "lfilter")
"""


def test_a_run_starts_without_all_of_scipy_signal() -> None:
    """torchmetrics looks for one name in it; whoever imports it later has the real one."""
    command, root = [sys.executable, "-c", CODE], Path(__file__).parents[1]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
