"""Layers for one token of each row, in a few fused kernels, where they are made of known parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xftrain.interfaces import Attention
from xftrain.kernels.skinny_linear import (
    Activation,
    RowNorm,
    SkinnyWeights,
    skinny_linear,
    supports,
)
from xftrain.model.block import Block
from xftrain.model.ffn.geglu import GEGLU
from xftrain.model.ffn.gelu import GELU
from xftrain.model.ffn.relu2 import ReLU2
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.model.gpt import GPT
from xftrain.model.heads.gqa import GQA
from xftrain.model.heads.mha import MHA
from xftrain.model.heads.mqa import MQA
from xftrain.model.linear import is_plain
from xftrain.model.norm.layernorm import LayerNorm
from xftrain.model.norm.rmsnorm import RMSNorm

_ACTIVATIONS: dict[type, tuple[Activation, bool]] = {  # and whether it is applied to a gate
    SwiGLU: ("silu", True),
    GEGLU: ("gelu_tanh", True),
    GELU: ("gelu_tanh", False),
    ReLU2: ("relu2", False),
}
_HEADS = (MHA, GQA, MQA)

Layer = Callable[[Tensor, Attention, Any, Any], Tensor]


def fused_blocks(model: GPT, num_rows: int) -> list[Layer] | None:
    """The layers as functions of the residual stream [1, B, D], attention, handle and positions.

    Args:
        model: the model, in evaluation mode.
        num_rows: B.

    Returns:
        None if a part is a class of the user's, or of another dtype or size than the kernels take.
    """
    layers = [_fused_block(block, num_rows) for block in model.blocks]  # type: ignore[arg-type]
    fused = [layer for layer in layers if layer is not None]
    return fused if len(fused) == len(layers) else None


def _fused_block(block: Block, num_rows: int) -> Layer | None:
    heads, ffn = block.heads, block.ffn
    norms = [_row_norm(norm) for norm in (block.norm_attn, block.norm_ffn)]
    if norms[0] is None or norms[1] is None:
        return None
    if type(heads) not in _HEADS or type(ffn) not in _ACTIVATIONS:
        return None
    layers: list[nn.Linear] = [heads.qkv, block.out, ffn.up, ffn.down]  # type: ignore[list-item]
    parts = (block, heads, ffn, block.norm_attn, block.norm_ffn, block.norm_q, block.norm_k)
    hooked = [part for part in parts if part is not None]
    if not all(map(is_plain, layers)) or any(_has_hooks(part) for part in hooked):
        return None
    weight = block.out.weight
    dtypes = {parameter.dtype for parameter in block.parameters()}
    is_cast = torch.is_autocast_enabled(weight.device.type)
    if len(dtypes) > 1 or is_cast or not supports(weight.dtype, weight.device, num_rows):
        return None
    return _Fused(block, norms[0], norms[1])


class _Fused:
    """Computes what `Block.forward` computes."""

    def __init__(self, block: Block, norm_attn: RowNorm, norm_ffn: RowNorm) -> None:
        self._encode_positions = block.encode_positions
        heads: Any = block.heads
        ffn: Any = block.ffn
        self._groups = (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
        self._head_dim: int = heads.head_dim
        self._qkv = SkinnyWeights.of(heads.qkv.weight, heads.qkv.bias, norm_attn)
        self._out = SkinnyWeights.of(block.out.weight, block.out.bias)
        self._up = SkinnyWeights.of(ffn.up.weight, ffn.up.bias, norm_ffn)
        self._down = SkinnyWeights.of(ffn.down.weight, ffn.down.bias)
        self._activation, self._is_gated = _ACTIVATIONS[type(ffn)]
        if isinstance(ffn, GELU) and ffn.exact:
            self._activation = "gelu"

    def __call__(self, x_1BD: Tensor, attention: Attention, handle: Any, positions: Any) -> Tensor:
        x_BD = x_1BD[0]
        qkv = skinny_linear(x_BD, self._qkv)
        qkv = qkv.view(1, len(x_BD), sum(self._groups), self._head_dim)
        q, k, v = qkv.split(self._groups, dim=2)
        q, k = self._encode_positions(q, k, positions)
        out_BD = attention(q, k, v, handle)[0].flatten(1)
        x_BD = skinny_linear(out_BD, self._out, residual_BO=x_BD)
        inner = skinny_linear(x_BD, self._up, activation=self._activation, is_gated=self._is_gated)
        return skinny_linear(inner, self._down, residual_BO=x_BD)[None]


def _row_norm(norm: nn.Module) -> RowNorm | None:
    if type(norm) is LayerNorm:
        return RowNorm(norm.weight, norm.bias, norm.eps, is_centered=True)
    if type(norm) is RMSNorm and norm.eps is not None:
        return RowNorm(norm.weight, None, norm.eps, is_centered=False)
    return None


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)
