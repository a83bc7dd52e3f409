"""Standard attention: materialized scores, softmax in float32.

This is the usual baseline of comparisons. Memory grows with M^2.
Vaswani et al., 2017, arXiv:1706.03762.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xftrain.interfaces import Attention, AttnCall, Backend
from xftrain.model.attn._dense import (
    DenseDocument,
    dense_documents,
    unfused_attention,
)
from xftrain.model.attn._stand_in import materialized_scores

_MAX_TIMED_MIB = 4096  # larger scores are slow to time, or do not fit into memory


@dataclass(frozen=True)
class _Handle:
    scale: float
    softcap: float | None
    documents: tuple[DenseDocument, ...]


class Naive(Backend):
    """`softmax(scores + bias) v` with M x M scores in float32 (float64 for float64).

    Each packed document is computed separately, since a NaN of another document would survive the
    multiplication by a probability of 0.
    """

    name = "naive"
    rank = 90
    takes_scale = takes_softcap = True
    smaller_option = "auto"

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Returns no reasons, since plain torch runs everywhere."""
        return []

    def handle_for(self, call: AttnCall) -> _Handle:
        """The bias of each document as a float32 tensor; None if everything is visible."""
        wide = torch.promote_types(call.dtype, torch.float32)
        documents = dense_documents(call.bias, call.shape.M, wide, call.device)
        return _Handle(call.scale, call.bias.softcap, documents)

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Runs attention; query heads of a group share their K/V head without copying it."""
        if len(handle.documents) == 1:
            return _attend(q_BMHK, k_BMGK, v_BMGK, handle.documents[0], handle)
        lengths = [document.length for document in handle.documents]
        parts = zip(*(x.split(lengths, dim=1) for x in (q_BMHK, k_BMGK, v_BMGK)), strict=True)
        outs = [
            _attend(q, k, v, document, handle)
            for document, (q, k, v) in zip(handle.documents, parts, strict=True)
        ]
        return torch.cat(outs, dim=1)

    def kernel_for(self, call: AttnCall) -> str:
        """The only kernel name of this backend."""
        return "naive"

    def too_slow_to_time(self, call: AttnCall) -> list[str]:
        """Names scores of more than 4 GiB as a reason."""
        scores_mib = call.shape.B * call.shape.H * call.shape.M**2 * 4 / 2**20
        if scores_mib > _MAX_TIMED_MIB:
            return [f"its scores alone would take {scores_mib:,.0f} MiB per layer; not timed"]
        return []

    def stand_in(self, call: AttnCall) -> Attention:
        """Saves the softmax of all scores, and the tanh of capped scores."""
        lengths = [length for length, _ in call.bias.documents(call.shape.M)]
        num_saved = 1 if call.bias.softcap is None else 2
        return lambda q, k, v, handle: materialized_scores(q, k, v, lengths, num_saved)

    def transient_bytes(self, call: AttnCall) -> int:
        """Bytes of the gradient of the scores, beside the gradient of the softmax."""
        wide = torch.promote_types(call.dtype, torch.float32)
        longest = max(call.bias.seqlens or (call.shape.M,))
        return call.shape.B * call.shape.H * longest**2 * wide.itemsize


def _attend(
    q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, document: DenseDocument, handle: _Handle
) -> Tensor:
    """Computes the attention of one document."""
    return unfused_attention(
        q_BMHK,
        k_BMGK,
        v_BMGK,
        document.bias_1HMM,
        document.query_mask,
        scale=handle.scale,
        softcap=handle.softcap,
    )
