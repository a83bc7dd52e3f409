"""Replaces logits by the gradient of their cross-entropy: Triton on a GPU, torch elsewhere."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from xftrain.interfaces import IGNORED_LABEL
from xftrain.kernels.probe import runs_triton
from xftrain.kernels.softcap import softcapped

# logits per block, and adjacent logits per thread; with 32 warps, an H100 processes few enough rows
# at a time for its cache to hold them until the second pass
_BLOCK, _GROUP = 4096, 4
_NUM_WARPS = 16 if torch.version.hip else 32  # a warp has 64 threads under HIP


class Regularization(NamedTuple):
    """Terms that training adds to the cross-entropy of each label.

    Attributes:
        z_loss: weight of log(Z)^2, where Z is the sum of the exponentials of all logits. It keeps
            logits from drifting (PaLM, Chowdhery et al., 2022, arXiv:2204.02311).
        label_smoothing: the label has the probability 1 - label_smoothing, and all V tokens share
            the rest (Szegedy et al., 2016, arXiv:1512.00567). It adds label_smoothing times the
            difference between the label's logit and the mean of all logits.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether any term is added."""
        return self != (0.0, 0.0)

    def of_rows(self, log_z_N: Tensor, own_N: Tensor, mean_N: Tensor | None) -> Tensor:
        """The sum of the terms in each row.

        Args:
            log_z_N: log(Z).
            own_N: the label's logit.
            mean_N: mean of the logits; None without label smoothing.
        """
        added_N = self.z_loss * log_z_N.square()
        return added_N if mean_N is None else added_N + self.label_smoothing * (own_N - mean_N)


_NO_REGULARIZATION = Regularization()


class RowResults(NamedTuple):
    """The results of each row; all are 0, or false, in rows with an ignored label.

    Attributes:
        losses_N: float32 cross-entropy in nats.
        correct_N: whether the first maximum of the logits is at the label.
        regularization_N: float32 sum of the terms of a `Regularization`; None if it has none.
    """

    losses_N: Tensor
    correct_N: Tensor
    regularization_N: Tensor | None


def softmax_gradient_(
    logits_NV: Tensor,
    labels_N: Tensor,
    *,
    needs_grad: bool,
    regularization: Regularization = _NO_REGULARIZATION,
    softcap: float | None = None,
) -> RowResults:
    """Computes the cross-entropy of each row, and overwrites logits by the gradient.

    The gradient is softmax - one-hot, plus that of the regularization.

    Args:
        logits_NV: contiguous; if `needs_grad`, overwritten by their gradient, which is 0 in rows
            with an ignored label.
        labels_N: int64 labels; contiguous.
        needs_grad: whether to overwrite the logits.
        regularization: terms to add to the cross-entropy.
        softcap: the logits are capped at it first, see `softcapped`; None does not cap them.
    """
    compute = _with_triton if has_kernel(logits_NV.device) else _with_torch
    return compute(logits_NV, labels_N, regularization, softcap, needs_grad=needs_grad)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device."""

    def launch() -> None:
        label_1 = torch.zeros(1, dtype=torch.int64, device=device)
        logits_12 = torch.zeros(1, 2, device=device)
        _with_triton(logits_12, label_1, _NO_REGULARIZATION, None, needs_grad=True)

    return runs_triton(device, launch, "loss")


def _with_torch(
    logits_NV: Tensor,
    labels_N: Tensor,
    regularization: Regularization,
    softcap: float | None,
    *,
    needs_grad: bool,
) -> RowResults:
    counts_N = labels_N != IGNORED_LABEL
    safe_N1 = labels_N.where(counts_N, 0)[:, None]
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if softcap is not None:
        wide_NV = softcapped(wide_NV, softcap)
    log_probs_NV = wide_NV.log_softmax(dim=-1)
    losses_N = -log_probs_NV.gather(1, safe_N1)[:, 0].masked_fill(~counts_N, 0.0)
    largest_N = (logits_NV if softcap is None else wide_NV).argmax(dim=-1)
    correct_N = (largest_N == labels_N) & counts_N
    z_loss, label_smoothing = regularization
    added_N, log_z_N = None, losses_N
    if regularization.is_on:
        own_N = wide_NV.gather(1, safe_N1)[:, 0]
        log_z_N = losses_N + own_N
        mean_N = wide_NV.mean(dim=-1) if label_smoothing else None
        added_N = regularization.of_rows(log_z_N, own_N, mean_N).masked_fill(~counts_N, 0.0).float()
    if needs_grad:
        grad_NV = log_probs_NV.exp_()
        if z_loss:
            grad_NV *= (1.0 + 2.0 * z_loss * log_z_N)[:, None]
        if label_smoothing:
            grad_NV -= label_smoothing / logits_NV.shape[1]
        minus_one_N1 = torch.full_like(safe_N1, label_smoothing - 1.0, dtype=grad_NV.dtype)
        grad_NV.scatter_add_(1, safe_N1, minus_one_N1)
        if softcap is not None:
            grad_NV *= wide_NV.div_(softcap).square_().neg_().add_(1.0)
        # not a multiplication by 0, which would keep the NaN of an ignored row
        logits_NV.copy_(grad_NV.masked_fill_(~counts_N[:, None], 0.0))
    return RowResults(losses_N.float(), correct_N, added_N)


def _with_triton(
    logits_NV: Tensor,
    labels_N: Tensor,
    regularization: Regularization,
    softcap: float | None,
    *,
    needs_grad: bool,
) -> RowResults:
    from xftrain.kernels.softmax_gradient_triton import softmax_gradient_kernel  # imports triton

    num_rows, vocab_size = logits_NV.shape
    losses_N = torch.empty(num_rows, device=logits_NV.device, dtype=torch.float32)
    correct_N = torch.empty(num_rows, device=logits_NV.device, dtype=torch.bool)
    added_N = torch.empty_like(losses_N) if regularization.is_on else None
    block = max(_GROUP, min(_BLOCK, 1 << (vocab_size - 1).bit_length()))
    with torch.cuda.device(logits_NV.device):
        softmax_gradient_kernel[(num_rows,)](
            logits_NV,
            labels_N.contiguous(),
            losses_N,
            correct_N,
            losses_N if added_N is None else added_N,
            vocab_size,
            logits_NV.stride(0),
            IGNORED=IGNORED_LABEL,
            NEEDS_GRAD=needs_grad,
            IS_REGULARIZED=regularization.is_on,
            Z_LOSS=regularization.z_loss,
            LABEL_SMOOTHING=regularization.label_smoothing,
            SOFTCAP=softcap or 0.0,  # 0 does not cap
            LOWEST=torch.finfo(torch.float32).min / 2,  # finite after the change to base 2 too
            BLOCK=block,
            GROUP=_GROUP,
            num_warps=_NUM_WARPS if block >= _BLOCK else 4,
        )
    return RowResults(losses_N, correct_N, added_N)
