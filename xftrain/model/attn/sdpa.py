"""PyTorch's `scaled_dot_product_attention`: cuDNN, FlashAttention or the efficient kernel.

torch.nn.functional.scaled_dot_product_attention. torch selects the kernel, except that cuDNN is
disabled for mask tensors; `kernel` names the selected one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from xftrain.interfaces import Attention, AttnBias, AttnCall, Backend
from xftrain.model.attn._dense import (
    DenseDocument,
    dense_documents,
    heads_for_mask,
    mask_reasons,
    masked_attention,
    masked_kernels,
)
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

_KERNELS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


@dataclass(frozen=True)
class _Handle:
    scale: float
    is_causal: bool
    fold: Fold | None
    documents: tuple[DenseDocument, ...]

    @property
    def is_masked(self) -> bool:
        return any(document.bias_1HMM is not None for document in self.documents)


class SDPA(Backend):
    """Runs torch's fused attention.

    Causal and full need no mask tensor. ALiBi is folded into q and k. Each packed document is one
    call. A window or a dense bias needs a mask tensor, quadratic in the longest document, for which
    cuDNN is disabled, see `model.attn._dense`.
    """

    name = "sdpa"
    rank = 10
    takes_scale = True

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Reasons why ALiBi cannot be folded, or sizes exceed the limits of the kernels."""
        bias, shape, dtype, device = call
        reasons = folding_reasons(bias, shape.M, dtype, shape.K) if is_folded(bias) else []
        longest = max(bias.seqlens or (shape.M,))  # each document is one call
        if needs_mask(bias):
            reasons += mask_reasons(longest, device)
        width = shape.K + num_features(call)
        reasons += row_reasons(shape.B, "rows", device)
        return reasons + element_reasons((shape.B, longest, shape.H, width), device)

    def handle_for(self, call: AttnCall) -> _Handle:
        """The documents, their masks if needed, and the ALiBi features."""
        bias, num_positions = call.bias, call.shape.M
        is_masked = needs_mask(bias)
        if is_masked:
            documents = dense_documents(
                without_folded_slopes(bias), num_positions, call.dtype, call.device
            )
        else:
            lengths = [length for length, _ in bias.documents(num_positions)]
            documents = tuple(DenseDocument(length, None, None) for length in lengths)
        features = fold(call) if is_folded(bias) else None
        return _Handle(
            scale=call.scale if features is None else features.scale,
            is_causal=bias.causal and not is_masked,
            fold=features,
            documents=documents,
        )

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Runs the kernel, which takes grouped K/V heads without expanding them."""
        width = v_BMGK.shape[-1]
        if handle.fold is not None:
            q_BMHK, k_BMGK = handle.fold(q_BMHK, k_BMGK)
            if q_BMHK.device.type == "cpu":
                # the CPU kernel needs v as wide as q and k, else torch computes M x M scores
                v_BMGK = F.pad(v_BMGK, (0, q_BMHK.shape[-1] - width))
        q, k, v = (x.transpose(1, 2) for x in (q_BMHK, k_BMGK, v_BMGK))
        if handle.is_masked:
            with masked_kernels(q.device):
                out_BMHK = _attend_all(q, k, v, handle)
        else:
            out_BMHK = _attend_all(q, k, v, handle)
        return out_BMHK if out_BMHK.shape[-1] == width else out_BMHK[..., :width]

    def kernel_for(self, call: AttnCall) -> str:
        """The kernel that torch selects for these shapes, with the form of the bias."""
        bias, shape, dtype, device = call
        handle = self.handle_for(call)
        longest = max(handle.documents, key=lambda document: document.length)
        mask = longest.bias_1HMM
        pad = 0 if handle.fold is None else handle.fold.k_1M1F.shape[-1]
        width = shape.K + pad if device.type == "cpu" else shape.K
        q, k = (
            torch.empty(
                shape.B, heads, longest.length, shape.K + pad, dtype=dtype, device=device
            ).requires_grad_()
            for heads in (shape.H, shape.G)
        )
        v = k[..., :width]
        if mask is not None:
            k, v = heads_for_mask(q, k, v)
        with nullcontext() if mask is None else masked_kernels(device):
            choice = torch._fused_sdp_choice(
                q,
                k,
                v,
                mask,
                0.0,
                handle.is_causal,
                scale=handle.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        name = _KERNELS.get(SDPBackend(choice), str(choice))
        if device.type == "cpu":
            name = f"cpu-{name}"
        notes = [
            "folded ALiBi" if handle.fold is not None else "",
            "mask tensor" if mask is not None else "",
            "one call a document" if bias.seqlens is not None else "",
        ]
        details = ", ".join(note for note in notes if note)
        return f"sdpa-{name} ({details})" if details else f"sdpa-{name}"

    def stand_in(self, call: AttnCall) -> Attention:
        """A fused kernel; a mask on a GPU needs K and V expanded to all query heads."""
        bias, shape = call.bias, call.shape
        features = fold(call) if is_folded(bias) else None
        expands = call.device.type == "cuda" and needs_mask(bias) and shape.G != shape.H

        def attend(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: object) -> Tensor:
            width = v_BMGK.shape[-1]
            pads_v = call.device.type == "cpu"
            q, k, v = folded(q_BMHK, k_BMGK, v_BMGK, features, pads_v=pads_v)
            if expands:
                k, v = (x.repeat_interleave(shape.H // shape.G, dim=2) for x in (k, v))
            out_BMHK = fused_kernel(q, k, v)
            return out_BMHK if out_BMHK.shape[-1] == width else out_BMHK[..., :width]

        return attend

    def transient_bytes(self, call: AttnCall) -> int:
        """Zero, since the kernel computes the scores in tiles."""
        return 0


def needs_mask(bias: AttnBias) -> bool:
    """Whether the bias needs a mask tensor: it is neither causal nor full nor folded."""
    return bias.dense or bias.window is not None or bias.additive_HMM is not None


def _attend_all(q: Tensor, k: Tensor, v: Tensor, handle: _Handle) -> Tensor:
    """Computes attention within each document, [B, heads, M, K] to [B, M, H, K]."""
    if len(handle.documents) == 1:
        return _attend(q, k, v, handle, handle.documents[0])
    # split, not slices: its backward concatenates the gradients of all documents at once
    lengths = [document.length for document in handle.documents]
    parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    outs = [
        _attend(q_part, k_part, v_part, handle, document)
        for document, (q_part, k_part, v_part) in zip(handle.documents, parts, strict=True)
    ]
    return torch.cat(outs, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, handle: _Handle, document: DenseDocument) -> Tensor:
    """Computes the attention of one document."""
    if document.bias_1HMM is not None:
        out = masked_attention(q, k, v, document.bias_1HMM, scale=handle.scale).transpose(1, 2)
        return out if document.query_mask is None else out * document.query_mask
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        is_causal=handle.is_causal,
        scale=handle.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    ).transpose(1, 2)
