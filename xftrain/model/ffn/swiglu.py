"""Gated feed-forward with SiLU (Shazeer, 2020, arXiv:2002.05202), as in Llama."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.config.fields import PositiveInt
from xftrain.kernels.gated import Gate
from xftrain.model.attn.xformers_ops.loading import reason_missing
from xftrain.model.attn.xformers_ops.swiglu import swiglu_function
from xftrain.model.ffn._feedforward import GatedFeedForward


class SwiGLU(GatedFeedForward):
    """Computes `(silu(x gate) * (x value)) down`; `up` holds gate and value.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 8/3 x dim, rounded to a multiple of 64.
        impl: `torch`; `xformers` (`xformers.ops.swiglu`, eager code since 0.0.34); `liger` (one
            Triton kernel for silu and multiplication, CUDA only); `auto` is `torch`, or a kernel of
            this project where matmuls are autotuned (`matmul=auto`, on a GPU). The weights are the
            same.
    """

    def __init__(
        self,
        dim: int,
        linear_bias: bool,
        *,
        hidden_dim: PositiveInt | None = None,
        impl: Literal["auto", "torch", "xformers", "liger"] = "auto",
    ) -> None:
        super().__init__(dim, linear_bias, hidden_dim=hidden_dim)
        self.impl = impl
        self._swiglu = swiglu_function() if impl == "xformers" else None

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons why `impl` cannot run on this device; empty means that it runs."""
        if self.impl == "liger" and device.type != "cuda":
            return [f"model.ffn.impl=liger needs a CUDA GPU, got {device.type}: use auto"]
        if self.impl == "liger" and importlib.util.find_spec("liger_kernel") is None:
            return ["model.ffn.impl=liger needs the package: pip install liger-kernel"]
        if self.impl == "xformers" and (missing := reason_missing()) is not None:
            return [f"model.ffn.impl=xformers cannot run: {missing}, or use auto"]
        return []

    @property
    def reads_weights(self) -> bool:  # type: ignore[override]
        """Whether this module reads the weights of its layers instead of calling the layers."""
        return self.impl == "xformers"

    def activation(self, x: Tensor) -> Tensor:
        """`silu(x)`."""
        return F.silu(x)

    @property
    def fused_gate(self) -> Gate | None:
        """`silu`, but None for subclasses, which may override the activation."""
        return "silu" if type(self) is SwiGLU and self.impl == "auto" else None

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]."""
        if self.impl == "xformers":
            return self._xformers(x_BMD)
        if self.impl == "liger":
            return self._liger(x_BMD)
        return super().forward(x_BMD)

    def stand_in(self) -> SwiGLU:
        """A copy of this layer that runs on fake tensors, which Liger's kernel does not support."""
        if self.impl == "liger":
            self.impl = "torch"
        return self

    def _liger(self, x_BMD: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        gate, value = self.up(x_BMD).chunk(2, dim=-1)
        return self.down(LigerSiLUMulFunction.apply(gate, value))

    def _xformers(self, x_BMD: Tensor) -> Tensor:
        w_gate, w_value = self.up.weight.chunk(2)
        b_gate, b_value = (None, None) if self.up.bias is None else self.up.bias.chunk(2)
        assert self._swiglu is not None, "`unsupported` refuses such a model"
        return self._swiglu(
            x_BMD, w_gate, b_gate, w_value, b_value, self.down.weight, self.down.bias
        )
