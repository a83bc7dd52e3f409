"""What a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from xftrain import compose
from xftrain.launch import dispatch

with dispatch._without_scipy_signal():
    import scipy.signal

    assert hasattr(scipy.signal, "hamming") and not hasattr(scipy.signal, "lfilter")
import scipy.signal

assert hasattr(scipy.signal, "lfilter")

dispatch.command_of(compose("model.attn=naive"))
assert "torchmetrics" in sys.modules
assert not {"matplotlib", "torchmetrics.utilities.plot"} & sys.modules.keys()
import torchmetrics

metric = torchmetrics.MeanMetric()
metric.update(3.0)
figure, axis = metric.plot()
assert type(figure).__module__ == "matplotlib.figure" and axis.has_data()
from torchmetrics.utilities.plot import plot_curve

assert plot_curve.__module__ == "torchmetrics.utilities.plot"
"""


@pytest.mark.long
def test_a_run_starts_without_all_of_scipy_signal_and_without_matplotlib() -> None:
    """torchmetrics looks for one name in the first, and plots with the second; both as before."""
    command, root = [sys.executable, "-c", CODE], Path(__file__).parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
