"""An operator pair that runs xFormers' attention on the CPU, for its own `op=(Fw, Bw)` seam.

xFormers ships no CPU kernel. This pair keeps its interface, masks and autograd function, and
computes with torch's CPU flash kernel (`aten::_scaled_dot_product_flash_attention_for_cpu`), which
has linear memory. Masks become tiles: a range of queries that sees one range of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xftrain.attention.xformers_ops.loading import xformers_ops

fmha = xformers_ops().fmha
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_MIN_TILE = 128  # queries of a window tile; below, the calls cost more than the hidden keys
_ab = fmha.attn_bias
_BIASES = (
    type(None),
    torch.Tensor,
    _ab.LowerTriangularMask,
    _ab.LowerTriangularFromBottomRightLocalAttentionMask,
    _ab.BlockDiagonalMask,
    _ab.BlockDiagonalCausalMask,
    _ab.BlockDiagonalCausalLocalAttentionMask,
)
_CAUSAL = (
    _ab.LowerTriangularMask,
    _ab.LowerTriangularFromBottomRightLocalAttentionMask,
    _ab.BlockDiagonalCausalMask,
    _ab.BlockDiagonalCausalLocalAttentionMask,
)


@dataclass(frozen=True)
class _Tile:
    """Queries [q0, q1) that see keys [k0, k1), all of them but for the mask."""

    q0: int
    q1: int
    k0: int
    k1: int
    is_causal: bool
    mask: Tensor | None = None


def _tiles(inp: Any) -> Iterator[_Tile]:
    """The mask of `inp` as tiles that cover every query once."""
    bias, num_queries, num_keys = inp.attn_bias, inp.query.shape[1], inp.key.shape[1]
    if bias is None or isinstance(bias, torch.Tensor):
        yield _Tile(0, num_queries, 0, num_keys, False, bias)
        return
    if isinstance(bias, _ab.BlockDiagonalMask):
        rows = zip(bias.q_seqinfo.intervals(), bias.k_seqinfo.intervals(), strict=True)
        blocks = [(q0, q1, k0, k1) for (q0, q1), (k0, k1) in rows]
    else:
        blocks = [(0, num_queries, 0, num_keys)]
    window = getattr(bias, "_window_size", None)
    for q0, q1, k0, k1 in blocks:
        if window is None or window >= q1 - q0:
            yield _Tile(q0, q1, k0, k1, isinstance(bias, _CAUSAL))
        else:
            yield from _window_tiles(q0, q1, window, inp.query.dtype)


def _window_tiles(start: int, end: int, window: int, dtype: torch.dtype) -> Iterator[_Tile]:
    step = max(window, _MIN_TILE)
    for q0 in range(start, end, step):
        q1, k0 = min(q0 + step, end), max(start, q0 - window + 1)
        ahead = torch.arange(q0, q1)[:, None] - torch.arange(k0, q1)[None, :]
        mask = torch.zeros(ahead.shape, dtype=dtype)
        yield _Tile(
            q0, q1, k0, q1, False, mask.masked_fill((ahead < 0) | (ahead >= window), -torch.inf)
        )


class _CPUReasons:
    """What both operators refuse, less the base class's word that bf16 needs a GPU."""

    @classmethod
    def not_supported_reasons(cls, d: Any) -> list[str]:
        reasons = super().not_supported_reasons(d)  # type: ignore[misc]
        ours = [r for r in reasons if r != "bf16 is only supported on A100+ GPUs"]
        causal = isinstance(d.attn_bias, _CAUSAL)
        if causal and d.query.shape[1] != d.key.shape[1]:
            ours.append("query and key lengths differ")
        return ours


class CPUForward(_CPUReasons, fmha.common.AttentionFwOpBase):  # type: ignore[misc,name-defined]
    """Forward: out and the log-sum-exp that the backward needs."""

    OPERATOR = True
    SUPPORTED_DEVICES = {"cpu"}
    SUPPORTED_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
    SUPPORTED_MAX_K = 65536
    SUPPORTED_ATTN_BIAS_TYPES = _BIASES
    SUPPORTS_DROPOUT = False
    SUPPORTS_CUSTOM_SCALE = True
    VARLEN_LSE_PACKED = True
    NAME = "cpu-flash"

    @classmethod
    def apply(cls, inp: Any, needs_gradient: bool) -> tuple[Tensor, Any]:
        """Attention of `fmha.Inputs` in BMHK; see `fmha.common.AttentionFwOpBase`."""
        q, k, v = (x.transpose(1, 2) for x in (inp.query, inp.key, inp.value))
        outs, lses = [], []
        for t in _tiles(inp):
            out, lse = _forward(
                q[:, :, t.q0 : t.q1],
                k[:, :, t.k0 : t.k1],
                v[:, :, t.k0 : t.k1],
                0.0,
                t.is_causal,
                attn_mask=t.mask,
                scale=inp.scale_float,
            )
            outs.append(out)
            lses.append(lse)
        out = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)).transpose(1, 2)
        lse = lses[0] if len(lses) == 1 else torch.cat(lses, dim=2)
        return out, fmha.Context(lse=lse, out=out) if needs_gradient else None


class CPUBackward(_CPUReasons, fmha.common.AttentionBwOpBase):  # type: ignore[misc,name-defined]
    """Backward of `CPUForward`."""

    OPERATOR = True
    SUPPORTED_DEVICES = CPUForward.SUPPORTED_DEVICES
    SUPPORTED_DTYPES = CPUForward.SUPPORTED_DTYPES
    SUPPORTED_MAX_K = CPUForward.SUPPORTED_MAX_K
    SUPPORTED_ATTN_BIAS_TYPES = _BIASES
    SUPPORTS_DROPOUT = False
    SUPPORTS_CUSTOM_SCALE = True
    VARLEN_LSE_PACKED = True
    NAME = "cpu-flashB"

    @classmethod
    def apply(cls, ctx: Any, inp: Any, grad: Tensor) -> Any:
        """Gradients of q, k, v in BMHK; see `fmha.common.AttentionBwOpBase`."""
        tiles = list(_tiles(inp))
        q, k, v, out, grad = (
            x.transpose(1, 2) for x in (inp.query, inp.key, inp.value, ctx.out, grad)
        )
        if len(tiles) == 1:
            dq, dk, dv = cls._tile(tiles[0], q, k, v, out, ctx.lse, grad, inp.scale_float)
            return fmha.Gradients(*(x.transpose(1, 2) for x in (dq, dk, dv)))
        # keys of neighboring window tiles overlap: their gradients are sums, kept in float32
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=wide) for x in (k, v))
        for t in tiles:
            here, seen = slice(t.q0, t.q1), slice(t.k0, t.k1)
            dq_tile, dk_tile, dv_tile = cls._tile(t, q, k, v, out, ctx.lse, grad, inp.scale_float)
            dq[:, :, here] = dq_tile
            dk[:, :, seen] += dk_tile
            dv[:, :, seen] += dv_tile
        return fmha.Gradients(*(x.to(q.dtype).transpose(1, 2) for x in (dq, dk, dv)))

    @staticmethod
    def _tile(
        t: _Tile,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        grad: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        here, seen = slice(t.q0, t.q1), slice(t.k0, t.k1)
        return _backward(
            grad[:, :, here],
            q[:, :, here],
            k[:, :, seen],
            v[:, :, seen],
            out[:, :, here],
            lse[:, :, here],
            0.0,
            t.is_causal,
            attn_mask=t.mask,
            scale=scale,
        )
