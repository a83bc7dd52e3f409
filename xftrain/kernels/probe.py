"""Checks whether Triton runs, which takes a GPU, a C compiler and Python's headers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import _disable_current_modes

from xftrain.errors import first_line
from xftrain.utils.device_memory import is_out_of_memory

log = logging.getLogger(__name__)


def runs_triton(device: torch.device, launch: Callable[[], object], what: str) -> bool:
    """Whether a Triton kernel can be launched on the device; warns if a GPU cannot.

    Args:
        device: device of the run.
        launch: launches the kernel on a tiny input.
        what: the option group that uses the kernel, for the warning.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        with _disable_current_modes():  # the memory prediction may call this under fake tensors
            launch()
    except Exception as error:  # compilers, linkers and file systems may raise anything
        if is_out_of_memory(error):
            raise
        log.warning(
            "%s: Triton does not run here, so torch computes instead: %s", what, first_line(error)
        )
        return False
    return True
