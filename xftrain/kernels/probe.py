"""Whether Triton runs: it needs a GPU, a C compiler and Python's headers to start a kernel."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import _disable_current_modes

from xftrain.errors import first_line
from xftrain.memory import is_out_of_memory

log = logging.getLogger(__name__)


def runs_triton(device: torch.device, launch: Callable[[], object], what: str) -> bool:
    """Whether a kernel can be launched there; says so where it should and cannot.

    Args:
        device: of the run.
        launch: launches it on next to nothing.
        what: it is for, a group of options.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        with _disable_current_modes():  # a prediction of memory, on fake tensors, may ask first
            launch()
    except Exception as error:  # of compilers, linkers and folders
        if is_out_of_memory(error):
            raise
        log.warning(
            "%s: Triton does not run here, torch does its part: %s", what, first_line(error)
        )
        return False
    return True
