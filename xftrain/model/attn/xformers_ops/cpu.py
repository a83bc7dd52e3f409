"""An operator pair that runs xFormers' attention on the CPU, for its `op=(Fw, Bw)` argument.

xFormers has no CPU kernel. This pair keeps its interface, masks and autograd function, and
computes with torch's CPU flash kernel (`aten::_scaled_dot_product_flash_attention_for_cpu`), which
has linear memory. Masks become tiles; a tile is a range of queries that see one range of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from xftrain.model.attn.xformers_ops.loading import xformers_ops

fmha = xformers_ops().fmha
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# queries of a window tile; with fewer, the overhead of calls exceeds the cost of hidden keys
_MIN_TILE = 128
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
    """Queries [q0, q1), which see the keys [k0, k1) that the mask of the tile does not hide."""

    q0: int
    q1: int
    k0: int
    k1: int
    is_causal: bool
    mask: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are no queries or no keys, so that the output is 0."""
        return self.q0 == self.q1 or self.k0 == self.k1


def _tiles(inp: Any) -> Iterator[_Tile]:
    """The mask of `inp` as tiles that cover every query once."""
    bias, num_queries, num_keys = inp.attn_bias, inp.query.shape[1], inp.key.shape[1]
    if bias is None or isinstance(bias, torch.Tensor):
        mask = None if bias is None else _readable(bias)
        yield _Tile(0, num_queries, 0, num_keys, False, mask)
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
    """The checks of both operators, without xFormers' rule that bf16 needs a GPU."""

    @classmethod
    def not_supported_reasons(cls, d: Any) -> list[str]:
        reasons = super().not_supported_reasons(d)  # type: ignore[misc]
        ours = [r for r in reasons if r != "bf16 is only supported on A100+ GPUs"]
        return ours + _tensor_reasons(d) + _length_reasons(d)

    @classmethod
    def check(cls, d: Any) -> None:
        """Raises an error in `apply` too, since xFormers skips the checks of the backward operator.

        Raises:
            ValueError: the reasons.
        """
        if reasons := cls.not_supported_reasons(d):
            raise ValueError(f"{cls.__name__} does not support the inputs: {'; '.join(reasons)}")


def _tensor_reasons(d: Any) -> list[str]:
    """Reasons: inputs that torch's kernel would silently misread or ignore."""
    reasons = [
        f"{name} is {x.dtype} on {x.device}, and query is {d.query.dtype} on {d.query.device}"
        for name, x in (("key", d.key), ("value", d.value), ("attn_bias", d.attn_bias))
        if isinstance(x, torch.Tensor) and (x.dtype, x.device) != (d.query.dtype, d.query.device)
    ]
    if d.query.shape[-1] == 0:
        reasons.append("query.shape[-1] is 0")
    bias = d.attn_bias
    if isinstance(bias, torch.Tensor):
        (B, num_queries), num_keys = d.query.shape[:2], d.key.shape[1]
        heads = (d.query.shape[2],) if d.query.ndim == 4 else ()
        expected = (B, *heads, num_queries, num_keys)
        if d.query.ndim in (3, 4) and tuple(bias.shape) != expected:
            reasons.append(f"attn_bias is of {tuple(bias.shape)}, expected {expected}")
        if bias.requires_grad:
            reasons.append("the gradient of attn_bias is not computed (requires_grad=True)")
    return reasons


def _length_reasons(d: Any) -> list[str]:
    """Reasons: lengths that cannot be divided into tiles."""
    bias, num_queries, num_keys = d.attn_bias, d.query.shape[1], d.key.shape[1]
    if not isinstance(bias, _ab.BlockDiagonalMask):
        differ = isinstance(bias, _CAUSAL) and num_queries != num_keys
        return ["query and key lengths differ"] * differ
    starts, key_starts = bias.q_seqinfo.seqstart_py, bias.k_seqinfo.seqstart_py
    if (starts[-1], key_starts[-1]) != (num_queries, num_keys) or len(starts) != len(key_starts):
        return [
            f"attn_bias has {len(starts) - 1} documents of {starts[-1]} queries and "
            f"{len(key_starts) - 1} of {key_starts[-1]} keys, for {num_queries} and {num_keys}"
        ]
    if any(end < start for ends in (starts, key_starts) for start, end in pairwise(ends)):
        return ["a document of attn_bias has a negative length"]
    if isinstance(bias, _CAUSAL) and list(starts) != list(key_starts):
        return ["query and key lengths of a document differ"]
    return []


def _readable(x: Tensor) -> Tensor:
    """The same tensor, contiguous in the last dimension, as torch's kernel assumes."""
    return x if x.stride(-1) == 1 else x.contiguous()


class CPUForward(_CPUReasons, fmha.common.AttentionFwOpBase):  # type: ignore[misc,name-defined]
    """The forward operator, which returns the output and the log-sum-exp for the backward pass."""

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
        """Computes attention of `fmha.Inputs` in BMHK; see `fmha.common.AttentionFwOpBase`."""
        cls.check(inp)
        q, k, v = (_readable(x).transpose(1, 2) for x in (inp.query, inp.key, inp.value))
        outs, lses = [], []
        for t in _tiles(inp):
            out, lse = cls._tile(t, q, k, v, inp.scale_float)
            outs.append(out)
            lses.append(lse)
        out = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)).transpose(1, 2)
        lse = lses[0] if len(lses) == 1 else torch.cat(lses, dim=2)
        return out, fmha.Context(lse=lse, out=out) if needs_gradient else None

    @staticmethod
    def _tile(t: _Tile, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        here = q[:, :, t.q0 : t.q1]
        if t.is_empty or not q.shape[0] * q.shape[1]:  # the kernel would divide by 0
            wide = torch.promote_types(q.dtype, torch.float32)
            return torch.zeros_like(here), here.new_full(here.shape[:3], -torch.inf, dtype=wide)
        out, lse = _forward(
            here,
            k[:, :, t.k0 : t.k1],
            v[:, :, t.k0 : t.k1],
            0.0,
            t.is_causal,
            attn_mask=t.mask,
            scale=scale,
        )
        return out, lse


class CPUBackward(_CPUReasons, fmha.common.AttentionBwOpBase):  # type: ignore[misc,name-defined]
    """The backward operator of `CPUForward`."""

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
        """Computes the gradients of q, k, v in BMHK; see `fmha.common.AttentionBwOpBase`."""
        cls.check(inp)
        tiles = list(_tiles(inp))
        q, k, v, out, grad = (
            _readable(x).transpose(1, 2) for x in (inp.query, inp.key, inp.value, ctx.out, grad)
        )
        is_empty = not q.shape[0] * q.shape[1]
        if len(tiles) == 1 and not tiles[0].is_empty and not is_empty:
            dq, dk, dv = cls._tile(tiles[0], q, k, v, out, ctx.lse, grad, inp.scale_float)
            return fmha.Gradients(*(x.transpose(1, 2) for x in (dq, dk, dv)))
        # at most two window tiles see a key, so that summing its gradients rounds once
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for t in tiles:
            if t.is_empty or is_empty:
                continue
            here, seen = slice(t.q0, t.q1), slice(t.k0, t.k1)
            dq_tile, dk_tile, dv_tile = cls._tile(t, q, k, v, out, ctx.lse, grad, inp.scale_float)
            dq[:, :, here] = dq_tile
            dk[:, :, seen] += dk_tile
            dv[:, :, seen] += dv_tile
        return fmha.Gradients(*(x.transpose(1, 2) for x in (dq, dk, dv)))

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
