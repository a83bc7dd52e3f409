"""xFormers' memory-efficient attention, with xFormers' own masks.

xformers.ops.memory_efficient_attention, pinned to 0.0.35. On CUDA, xFormers
dispatches to one of its kernels. It has none for the CPU, where the operator pair of this project
is passed as `op=`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import Attention, AttnBias, AttnCall, Backend
from xftrain.model.attn._dense import dense_bias, mask_reasons
from xftrain.model.attn._folding import (
    Fold,
    fold,
    folding_reasons,
    is_folded,
    num_features,
    without_folded_slopes,
)
from xftrain.model.attn._limits import element_reasons, row_reasons
from xftrain.model.attn._stand_in import folded, fused_kernel
from xftrain.model.attn.xformers_ops.attention import (
    Operators,
    attention_function,
    cpu_operators,
    mask_for,
    operators_for,
    operators_name,
)
from xftrain.model.attn.xformers_ops.loading import reason_missing

_ALIGN = 8  # cutlass needs rows of a bias aligned to 16 bytes


@dataclass(frozen=True)
class _Handle:
    attend: Any  # memory_efficient_attention, or this project's; compiled code must not look it up
    expands: bool  # whether K/V of grouped heads are expanded
    scale: float
    mask: Any  # None, a tensor, or one of xFormers' bias classes
    fold: Fold | None
    query_mask: Tensor | None
    op: Operators | None


class XFormers(Backend):
    """Runs `memory_efficient_attention`; grouped K/V are expanded if the kernel needs it."""

    name = "xformers"
    rank = 20
    takes_scale = True

    def __init__(self) -> None:
        self._grouped: dict[tuple[Any, ...], bool] = {}

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """The reasons that xFormers gives for these inputs, forward and backward."""
        bias, shape, dtype, device = call
        if (missing := reason_missing()) is not None:
            return [missing]
        if device.type not in ("cpu", "cuda"):
            return [f"xFormers has no kernel for {device.type}"]
        reasons = folding_reasons(bias, shape.M, dtype, shape.K) if is_folded(bias) else []
        if _is_tensor(bias):
            reasons += mask_reasons(shape.M, device)
        reasons += row_reasons(max(shape.B, len(bias.seqlens or ())), "rows or documents", device)
        width = shape.K + num_features(call)
        reasons += element_reasons((shape.B, shape.M, shape.H, width), device)
        if reasons:
            return reasons
        try:
            self._ops(call, needs_grad=needs_grad)
        except NotImplementedError as error:
            return [str(error)]
        return []

    def packs_at_full_speed(self, device: torch.device) -> bool:
        """Whether the device is a GPU."""
        return device.type == "cuda"

    def handle_for(self, call: AttnCall) -> _Handle:
        """The mask in xFormers' own form, and the ALiBi features."""
        handle = self._expanded(call)
        if not self._runs_grouped(call):
            return handle
        from xftrain.model.attn.xformers_ops.grouped import grouped_attention

        return replace(handle, attend=grouped_attention, expands=False)

    def _runs_grouped(self, call: AttnCall) -> bool:
        """Whether the kernel takes grouped K/V; cached for batches that differ only in length."""
        bias, shape, dtype, device = call
        if shape.G == shape.H or device.type != "cuda":
            return False
        form = (bias.causal, bias.window is None, bias.seqlens is None, bias.slopes is None)
        tensor = _is_tensor(bias)
        is_strict = torch.are_deterministic_algorithms_enabled()
        key = (*form, tensor, shape.H, shape.G, shape.K, dtype, device, is_strict)
        if key not in self._grouped:
            from xftrain.model.attn.xformers_ops.grouped import runs_grouped

            try:
                self._grouped[key] = runs_grouped(*self._ops(call, needs_grad=True))
            except NotImplementedError:  # only the forward pass runs, as in validation
                self._grouped[key] = False
        return self._grouped[key]

    def _expanded(self, call: AttnCall) -> _Handle:
        """The handle for K/V expanded to as many heads as q."""
        bias, shape, device = call.bias, call.shape, call.device
        query_mask = None
        mask: Any
        if _is_tensor(bias):
            mask, query_mask = self._tensor_mask(call._replace(bias=without_folded_slopes(bias)))
        else:
            causal, window, seqlens = bias.causal, bias.window, bias.seqlens
            mask = mask_for(device, causal=causal, window=window, seqlens=seqlens)
        features = fold(call) if is_folded(bias) else None
        return _Handle(
            attend=attention_function(),
            expands=shape.G != shape.H,
            scale=call.scale if features is None else features.scale,
            mask=mask,
            fold=features,
            query_mask=query_mask,
            op=cpu_operators() if device.type == "cpu" else None,
        )

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Runs `memory_efficient_attention`."""
        width = v_BMGK.shape[-1]
        if handle.fold is not None:
            q_BMHK, k_BMGK = handle.fold(q_BMHK, k_BMGK)
            # flash needs one width for q, k and v
            v_BMGK = F.pad(v_BMGK, (0, q_BMHK.shape[-1] - width))
        if handle.expands:
            k_BMGK, v_BMGK = (_expand(x, q_BMHK.shape[2]) for x in (k_BMGK, v_BMGK))
        out_BMHK = handle.attend(
            q_BMHK,
            k_BMGK,
            v_BMGK,
            attn_bias=handle.mask,
            scale=handle.scale,
            op=handle.op,
        )
        if handle.fold is not None:
            out_BMHK = out_BMHK[..., :width]
        return out_BMHK if handle.query_mask is None else out_BMHK * handle.query_mask

    def kernel_for(self, call: AttnCall) -> str:
        """The operator that xFormers dispatches to, with the form of bias and heads."""
        name = operators_name(self._ops(call, needs_grad=True))
        handle = self.handle_for(call)
        notes = [
            "folded ALiBi" if is_folded(call.bias) else "",
            "bias tensor" if _is_tensor(call.bias) else "",
            "expanded K/V" if call.shape.G > 1 and handle.expands else "",
        ]
        details = ", ".join(note for note in notes if note)
        return f"{name} ({details})" if details else name

    def stand_in(self, call: AttnCall) -> Attention:
        """A fused kernel, with v padded to the width of q and k."""
        features = fold(call) if is_folded(call.bias) else None

        def attend(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: object) -> Tensor:
            width = v_BMGK.shape[-1]
            out_BMHK = fused_kernel(*folded(q_BMHK, k_BMGK, v_BMGK, features, pads_v=True))
            return out_BMHK if out_BMHK.shape[-1] == width else out_BMHK[..., :width]

        return attend

    def transient_bytes(self, call: AttnCall) -> int:
        """Zero, since the kernel computes the scores in tiles."""
        return 0

    def _ops(self, call: AttnCall, *, needs_grad: bool) -> Operators:
        """The forward and backward operators that would run; raises NotImplementedError."""
        shape, handle = call.shape, self._expanded(call)
        pad = 0 if handle.fold is None else handle.fold.k_1M1F.shape[-1]
        return operators_for(
            (shape.B, shape.M, shape.H, shape.K + pad),
            call.dtype,
            call.device,
            mask=handle.mask,
            scale=handle.scale,
            is_packed=call.bias.seqlens is not None,
            needs_grad=needs_grad,
        )

    def _tensor_mask(self, call: AttnCall) -> tuple[Tensor, Tensor | None]:
        """The whole bias as [B, H, M, M], with rows aligned as cutlass requires."""
        bias, shape, dtype, device = call
        dense_1HMM, query_mask = dense_bias(bias, shape.M, dtype, device)
        aligned = F.pad(dense_1HMM, (0, -shape.M % _ALIGN))[..., : shape.M]
        return aligned.expand(shape.B, shape.H, -1, -1), query_mask


def _is_tensor(bias: AttnBias) -> bool:
    """Whether the kernel reads the bias as one tensor."""
    return bias.dense or bias.additive_HMM is not None


def _expand(x_BMGK: Tensor, num_heads: int) -> Tensor:
    """Expands K or V to all query heads; a single head is expanded without a copy."""
    num_groups = x_BMGK.shape[2]
    if num_groups == num_heads:
        return x_BMGK
    if num_groups == 1:
        return x_BMGK.expand(-1, -1, num_heads, -1)
    return x_BMGK.repeat_interleave(num_heads // num_groups, dim=2)
