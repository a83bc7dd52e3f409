"""PyTorch's `scaled_dot_product_attention`: cuDNN, FlashAttention or the efficient kernel.

torch.nn.functional.scaled_dot_product_attention; which kernel it takes is torch's own choice, and
`kernel` says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from xftrain.attention.dense import dense_bias
from xftrain.attention.folding import Fold, fold, folding_reasons
from xftrain.interfaces import AttnBias, AttnShape, Backend

_KERNELS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


@dataclass(frozen=True)
class _Part:
    """Positions that attend to themselves only: the row, or one packed document."""

    length: int
    mask: Tensor | None
    alive: Tensor | None


@dataclass(frozen=True)
class _Handle:
    scale: float
    is_causal: bool
    fold: Fold | None
    parts: tuple[_Part, ...]


class SDPA(Backend):
    """Torch's fused attention.

    Causal and full need no mask tensor; ALiBi is folded; packed documents are one call each; a
    window (and a dense bias) is a mask tensor of the longest document squared.
    """

    name = "sdpa"
    rank = 10

    def unsupported(
        self,
        bias: AttnBias,
        shape: AttnShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        needs_grad: bool = True,
    ) -> list[str]:
        """Only what cannot be folded: torch falls back to its own math for the rest."""
        return [] if bias.dense else folding_reasons(bias, shape.M, dtype)

    def prepare(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> _Handle:
        """Documents, masks where needed, and ALiBi's features."""
        folded = bias.slopes is not None and not bias.dense
        needs_mask = bias.dense or bias.window is not None or bias.additive_HMM is not None
        parts = []
        masks: dict[int, Tensor] = {}  # documents of one length share a mask
        for start, end in bias.segments(shape.M):
            length = end - start
            mask = alive = None
            if needs_mask:
                additive = bias.additive_HMM
                if additive is not None:
                    additive = additive[:, start:end, start:end]
                if length not in masks or additive is not None:
                    facts = AttnBias(
                        causal=bias.causal,
                        window=bias.window,
                        slopes=None if folded else bias.slopes,
                        additive_HMM=additive,
                    )
                    masks[length], alive = dense_bias(facts, length, dtype, device)
                mask = masks[length]
            parts.append(_Part(length, mask, alive))
        return _Handle(
            scale=shape.scale,
            is_causal=bias.causal and not needs_mask,
            fold=fold(bias, shape, dtype, device) if folded else None,
            parts=tuple(parts),
        )

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Attention; grouped heads go to the kernel as they are."""
        width = v_BMGK.shape[-1]
        if handle.fold is not None:
            q_BMHK, k_BMGK = handle.fold(q_BMHK, k_BMGK)
            if q_BMHK.device.type == "cpu":
                # the CPU kernel wants one width, else torch falls back to M x M scores
                v_BMGK = F.pad(v_BMGK, (0, q_BMHK.shape[-1] - width))
        q, k, v = (x.transpose(1, 2) for x in (q_BMHK, k_BMGK, v_BMGK))
        if len(handle.parts) == 1:
            out_BMHK = _attend(q, k, v, handle, handle.parts[0])
        else:
            # split, not slices: its backward joins the documents' gradients in one go
            lengths = [part.length for part in handle.parts]
            documents = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
            outs = [
                _attend(q_part, k_part, v_part, handle, part)
                for part, (q_part, k_part, v_part) in zip(handle.parts, documents, strict=True)
            ]
            out_BMHK = torch.cat(outs, dim=1)
        return out_BMHK if out_BMHK.shape[-1] == width else out_BMHK[..., :width]

    def kernel(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> str:
        """The kernel torch would take for these shapes, with the form of the bias."""
        handle = self.prepare(bias, shape, dtype, device)
        longest = max(handle.parts, key=lambda part: part.length)
        pad = 0 if handle.fold is None else handle.fold.k_1M1F.shape[-1]
        width = shape.K + pad if device.type == "cpu" else shape.K
        q, k = (
            torch.empty(
                shape.B, heads, longest.length, shape.K + pad, dtype=dtype, device=device
            ).requires_grad_()
            for heads in (shape.H, shape.G)
        )
        choice = torch._fused_sdp_choice(
            q,
            k,
            k[..., :width],
            longest.mask,
            0.0,
            handle.is_causal,
            scale=handle.scale,
            enable_gqa=shape.H != shape.G,
        )
        name = _KERNELS.get(SDPBackend(choice), str(choice))
        if device.type == "cpu":
            name = f"cpu-{name}"
        notes = [
            "folded ALiBi" if handle.fold is not None else "",
            "mask tensor" if longest.mask is not None else "",
            "one call a document" if bias.seqlens is not None else "",
        ]
        said = ", ".join(note for note in notes if note)
        return f"sdpa-{name} ({said})" if said else f"sdpa-{name}"


def _attend(q: Tensor, k: Tensor, v: Tensor, handle: _Handle, part: _Part) -> Tensor:
    """Attention of one part, [B, heads, M, K] to [B, M, H, K]."""
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=part.mask,
        is_causal=handle.is_causal,
        scale=handle.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    ).transpose(1, 2)
    return out if part.alive is None else out * part.alive
