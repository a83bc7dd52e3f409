"""Replaces logits by the gradient of their cross-entropy: Triton on a GPU, torch elsewhere."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from xftrain.interfaces import IGNORED_LABEL
from xftrain.kernels.probe import runs_triton

# logits per block, and adjacent logits per thread; with 32 warps, an H100 processes few enough rows
# at a time for its cache to hold them until the second pass
_BLOCK, _GROUP = 4096, 4
_NUM_WARPS = 16 if torch.version.hip else 32  # a warp has 64 threads under HIP


def softmax_gradient_(
    logits_NV: Tensor, labels_N: Tensor, *, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Computes the cross-entropy of each row, and overwrites logits by softmax - one-hot.

    Args:
        logits_NV: contiguous; if `needs_grad`, overwritten by their gradient, which is 0 in rows
            with an ignored label.
        labels_N: int64 labels; contiguous.
        needs_grad: whether to overwrite the logits.

    Returns:
        float32 losses [N] in nats, and whether the first maximum of the logits is at the label [N];
        0 and false for ignored labels.
    """
    if has_kernel(logits_NV.device):
        return _with_triton(logits_NV, labels_N, needs_grad=needs_grad)
    return _with_torch(logits_NV, labels_N, needs_grad=needs_grad)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device."""

    def launch() -> None:
        label_1 = torch.zeros(1, dtype=torch.int64, device=device)
        _with_triton(torch.zeros(1, 2, device=device), label_1, needs_grad=True)

    return runs_triton(device, launch, "loss")


def _with_torch(logits_NV: Tensor, labels_N: Tensor, *, needs_grad: bool) -> tuple[Tensor, Tensor]:
    counts_N = labels_N != IGNORED_LABEL
    safe_N1 = labels_N.where(counts_N, 0)[:, None]
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    log_probs_NV = wide_NV.log_softmax(dim=-1)
    losses_N = -log_probs_NV.gather(1, safe_N1)[:, 0].masked_fill(~counts_N, 0.0)
    correct_N = (logits_NV.argmax(dim=-1) == labels_N) & counts_N
    if needs_grad:
        grad_NV = log_probs_NV.exp_()
        minus_one_N1 = torch.full_like(safe_N1, -1, dtype=grad_NV.dtype)
        grad_NV.scatter_add_(1, safe_N1, minus_one_N1)
        # not a multiplication by 0, which would keep the NaN of an ignored row
        logits_NV.copy_(grad_NV.masked_fill_(~counts_N[:, None], 0.0))
    return losses_N.float(), correct_N


def _with_triton(logits_NV: Tensor, labels_N: Tensor, *, needs_grad: bool) -> tuple[Tensor, Tensor]:
    from xftrain.kernels.softmax_gradient_triton import softmax_gradient_kernel  # imports triton

    num_rows, vocab_size = logits_NV.shape
    losses_N = torch.empty(num_rows, device=logits_NV.device, dtype=torch.float32)
    correct_N = torch.empty(num_rows, device=logits_NV.device, dtype=torch.bool)
    block = max(_GROUP, min(_BLOCK, 1 << (vocab_size - 1).bit_length()))
    with torch.cuda.device(logits_NV.device):
        softmax_gradient_kernel[(num_rows,)](
            logits_NV,
            labels_N.contiguous(),
            losses_N,
            correct_N,
            vocab_size,
            logits_NV.stride(0),
            IGNORED=IGNORED_LABEL,
            NEEDS_GRAD=needs_grad,
            LOWEST=torch.finfo(torch.float32).min / 2,  # finite after the change to base 2 too
            BLOCK=block,
            GROUP=_GROUP,
            num_warps=_NUM_WARPS if block >= _BLOCK else 4,
        )
    return losses_N, correct_N
