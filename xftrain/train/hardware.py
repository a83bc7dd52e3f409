"""Determines the device and the precision of a run before anything is built."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from xftrain.errors import ConfigError

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]

_COMPUTE_DTYPE = {
    "32-true": torch.float32,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


def resolve(
    accelerator: str, precision: str, devices: int = 1, rank: int = 0
) -> tuple[torch.device, str]:
    """The device of this rank, and the precision with `auto` resolved for that device.

    Args:
        accelerator: `trainer.accelerator`: `auto`, `cpu` or `gpu`.
        precision: `trainer.precision`: `auto` or one of `Precision`.
        devices: the number of ranks, each with one device.
        rank: this rank, which is also the index of its GPU.

    Raises:
        ConfigError: a GPU is configured and there is none, or Lightning would silently use another
            precision than the configured one.
    """
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError(
            "trainer.accelerator=gpu needs a CUDA GPU and torch sees none: use trainer=cpu, or "
            "check the driver with nvidia-smi."
        )
    device = torch.device("cpu")
    if has_gpu and accelerator != "cpu":
        if (num_gpus := torch.cuda.device_count()) < devices:
            raise ConfigError(
                f"trainer.devices must be at most the number of GPUs of this machine, {num_gpus}, "
                f"got {devices}."
            )
        device = torch.device("cuda", rank) if devices > 1 else torch.device("cuda")
    if precision == "auto":
        if device.type == "cpu":
            return device, "32-true"
        return device, "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if precision == "16-mixed" and device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed needs a CUDA GPU (Lightning would quietly run bf16 on the "
            "CPU): use trainer.precision=bf16-mixed or 32-true."
        )
    return device, precision


def device_name(device: torch.device) -> str:
    """The name of a device, such as `NVIDIA H100 80GB HBM3`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def is_mixed(precision: str, dtype: torch.dtype) -> bool:
    """Whether weights are float32 and autocast copies them to the dtype of matmuls."""
    return dtype != torch.float32 and precision != "bf16-true"


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of weights: that of matmuls, but float32 where autocast copies them."""
    dtype = compute_dtype(precision)
    return torch.float32 if is_mixed(precision, dtype) else dtype


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within this context, matmuls and attention run in the dtype of the precision."""
    dtype = compute_dtype(precision)
    return torch.autocast(device.type, dtype, enabled=is_mixed(precision, dtype))


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype in which matmuls and attention run."""
    return _COMPUTE_DTYPE[precision]
