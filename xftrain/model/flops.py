"""FLOPs of a training step, and the peak FLOP/s of devices, for the MFU."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from xftrain.errors import ConfigError
from xftrain.interfaces import Backend, Batch, ChoosingBackend
from xftrain.interfaces.batch_checks import describe_value
from xftrain.model.gpt import GPT

# TFLOP/s in float32, TF32 and half precision, from NVIDIA's data sheet
# (nvidia.com/data-center/h200), halved if they assume sparsity. Lightning's values assume sparsity,
# and do not match the H200's name.
_H200, _H200_NVL = (67.0, 494.5, 989.5), (60.0, 417.5, 835.5)

FORMULA = "MFU = (6 N + 12 L H K M) x tokens/s / peak"


def flops_per_token(
    model: GPT, batch: Batch, device_dtype: tuple[torch.device, torch.dtype] | None = None
) -> float:
    """FLOPs of forward and backward per token (PaLM, arXiv:2204.02311, appendix B).

    They are 6 N for the matmuls, where N leaves out embedding tables that are only looked up, plus
    12 L H K M for attention, counted in full even if causal. M is the mean document length of
    tokens, or the window of a layer if that is smaller.

    An option may declare its own figures: `active_parameters` of a module, such as a mixture of
    experts, replaces its part of N, and `flops_per_token` of a backend replaces the term of
    attention.

    Args:
        model: the model.
        batch: the batch.
        device_dtype: device and dtype of q, k and v; None is those of the model.

    Raises:
        ConfigError: a declared figure is not a number of parameters or FLOPs.
    """
    return FlopCounter(model, device_dtype).per_token(batch)


class FlopCounter:
    """Computes `flops_per_token` of many batches, and counts the parameters only once."""

    def __init__(
        self, model: GPT, device_dtype: tuple[torch.device, torch.dtype] | None = None
    ) -> None:
        self._flops_of_weights = 6 * _num_multiplied(model)
        self._flops_per_key = 12 * model.num_heads * model.head_dim
        self._windows = Counter(model.windows)
        self._model, self._device_dtype, backend = model, device_dtype, model.backend
        if isinstance(backend, ChoosingBackend) and backend.chosen is not None:
            backend = backend.chosen
        # only a backend that declares its FLOPs needs the attention calls of each batch
        default = Backend.flops_per_token
        is_declared = getattr(type(backend), "flops_per_token", default) is not default
        self._declaring = backend if is_declared else None

    def per_token(self, batch: Batch) -> float:
        """The FLOPs per token of a batch, see `flops_per_token`."""
        if (backend := self._declaring) is not None:
            declared = self._of_attention(backend, batch)
            if declared is not None:
                return self._flops_of_weights + declared
        lengths = batch.seqlens or (batch.tokens_BM.shape[1],)
        keys = 0.0  # mean number of keys of a query, summed over layers
        for window, num_layers in self._windows.items():
            seen = (n * (n if window is None else min(n, window)) for n in lengths)
            keys += num_layers * sum(seen) / sum(lengths)
        return self._flops_of_weights + self._flops_per_key * keys

    def _of_attention(self, backend: Backend, batch: Batch) -> float | None:
        """The FLOPs per token that a backend declares, summed over layers; None if unknown."""
        sizes, total = (*batch.shape_BM, batch.seqlens), 0.0
        for call, layers in self._model.attention_cases(*sizes, self._device_dtype):
            flops: Any = backend.flops_per_token(call)
            if flops is None:
                return None
            if not isinstance(flops, int | float) or not math.isfinite(flops) or flops < 0:
                raise _wrong_figure(backend, "flops_per_token", "a finite number >= 0", flops)
            total += len(layers) * flops
        return total


def _num_multiplied(model: GPT) -> int:
    """N, the number of parameters that a token is multiplied with.

    Embedding tables that are only looked up are left out.
    """
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    counted = looked_up - {id(model.head.weight)}
    total = 0
    for module in model.modules():  # a module comes before its submodules
        if (declare := getattr(module, "active_parameters", None)) is None:
            continue
        new = {id(parameter) for parameter in module.parameters()} - counted
        active: Any = declare() if callable(declare) else declare
        if not isinstance(active, int) or active < 0:
            raise _wrong_figure(module, "active_parameters", "an integer >= 0", active)
        total += active if new else 0
        counted |= new
    return total + sum(p.numel() for p in model.parameters() if id(p) not in counted)


def _wrong_figure(part: object, method: str, rule: str, found: Any) -> ConfigError:
    got = found if isinstance(found, int | float) else describe_value(found)
    return ConfigError(
        f"{type(part).__qualname__}.{method} must return {rule}, got {got}: the FLOPs of a step "
        "are computed from it."
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The vendor's dense peak for the dtype, or None for a device that is not listed."""
    if device.type != "cuda":
        return None
    name_parts = torch.cuda.get_device_name(device).split()
    if "H200" in name_parts and dtype in (torch.float32, torch.bfloat16, torch.float16):
        in_float32, in_tf32, in_half = _H200_NVL if "NVL" in name_parts else _H200
        if dtype == torch.float32:
            highest = torch.get_float32_matmul_precision() == "highest"
            return (in_float32 if highest else in_tf32) * 1e12
        return in_half * 1e12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # describe_peak reports an unknown device
        return get_available_flops(device, dtype)


def describe_peak(device: torch.device, dtype: torch.dtype) -> str:
    """The MFU formula with the peak of the device, or the reason why no MFU is logged."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = peak_flops(device, dtype)
    if peak is None:
        return f"{FORMULA}: unknown device ({name}), no MFU is logged"
    precision = str(dtype).removeprefix("torch.")
    return f"{FORMULA}; peak {peak / 1e12:.1f} TFLOP/s (dense {precision}, {name})"
