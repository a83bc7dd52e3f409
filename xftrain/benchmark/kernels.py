"""All attention kernels that may exist on this machine, as separate functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn.xformers_ops.operators import causal_kernels

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # causal, [B, M, H, K] each

_SDPA = {
    "sdpa-math": SDPBackend.MATH,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
_SINGLE_KERNEL_BACKENDS = ("naive", "flex")  # backends with one kernel each


def kernels(device: torch.device) -> dict[str, Kernel]:
    """The kernels by name; whether a kernel runs is known only once it is called."""
    found: dict[str, Kernel] = {name: partial(_backend, name) for name in _SINGLE_KERNEL_BACKENDS}
    found |= {name: partial(_sdpa, backend) for name, backend in _SDPA.items()}
    try:
        operators = causal_kernels()
    except ImportError:
        return found | {"xformers": partial(_backend, "xformers")}  # raises with what is missing
    if device.type == "cpu":
        return found | {"xformers cpu-flash": partial(_backend, "xformers")}
    return found | {f"xformers {name}": kernel for name, kernel in operators.items()}


def _backend(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    backend = registry.build(checked_option("model.attn", {"name": name}))
    shape = AttnShape(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    call = AttnCall(AttnBias(), shape, q.dtype, q.device)
    if reasons := backend.unsupported_reasons(call):
        raise NotImplementedError("; ".join(reasons))
    out: Tensor = backend(q, k, v, backend.prepare_handle(call))
    return out


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(backend), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        except RuntimeError as error:
            raise NotImplementedError(_torch_reasons(caught) or str(error)) from error


def _torch_reasons(caught: list[warnings.WarningMessage]) -> str:
    """Torch's reasons, without those about kernels that were disabled on purpose."""
    lines = [" ".join(str(w.message).partition("(Triggered")[0].split()) for w in caught]
    kept = [line for line in lines if "not used because" not in line and "disabled" not in line]
    return "; ".join(dict.fromkeys(kept))
