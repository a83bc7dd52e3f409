"""Cross-entropy over the whole logits tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.config.fields import NonNegativeFloat, Probability
from xftrain.interfaces import IGNORED_LABEL, LossSums, logits_bytes
from xftrain.kernels.softcap import softcapped
from xftrain.kernels.softmax_gradient import Regularization


class Full:
    """Computes all N x V logits, then their cross-entropy in float32.

    Args:
        z_loss: weight of the mean of log(Z)^2, see `Regularization`.
        label_smoothing: share of the label's probability that all tokens share, see
            `Regularization`.
    """

    smaller_option = "chunked"
    takes_softcap = True

    def __init__(
        self, *, z_loss: NonNegativeFloat = 0.0, label_smoothing: Probability = 0.0
    ) -> None:
        self.regularization = Regularization(z_loss, label_smoothing)

    def unsupported(self, device: torch.device) -> list[str]:
        """Returns no reasons, since this loss runs on every device."""
        return []

    def __call__(
        self,
        x_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        *,
        with_accuracy: bool,
        softcap: float | None = None,
    ) -> LossSums:
        """Computes the sums over all labels that are not ignored, see `Loss`."""
        logits_NV = F.linear(x_ND, weight_VD)
        return cross_entropy_sums(
            *(logits_NV, labels_N, self.regularization, softcap), with_accuracy=with_accuracy
        )

    def peak_bytes(
        self,
        num_tokens: int,
        weight_VD: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        softcap: float | None = None,
    ) -> int:
        """Peak bytes: those of all logits."""
        return full_bytes(num_tokens, weight_VD.shape[0], self.regularization, softcap)


def full_bytes(
    num_tokens: int, vocab_size: int, regularization: Regularization, softcap: float | None
) -> int:
    """Peak bytes of `cross_entropy_sums` and its backward pass, for logits [N, V].

    The cap saves its tanh, a float32 tensor [N, V]. The regularization needs two more, for the
    gradients of log(Z) and of the labels' logits, which are added up.
    """
    more = 2 * regularization.is_on + (softcap is not None)
    return logits_bytes(num_tokens, vocab_size) + more * 4 * num_tokens * vocab_size


def cross_entropy_sums(
    logits_NV: Tensor,
    labels_N: Tensor,
    regularization: Regularization,
    softcap: float | None = None,
    *,
    with_accuracy: bool,
) -> LossSums:
    """Summed cross-entropy, counts of labels and correct predictions, and summed regularization.

    Args:
        logits_NV: logits before the cap.
        labels_N: int64 labels.
        regularization: terms to add to the cross-entropy.
        softcap: cap of the logits; None does not cap them.
        with_accuracy: whether to count correct predictions.
    """
    if softcap is not None:
        logits_NV = softcapped(logits_NV, softcap)
    num_correct = None
    if with_accuracy:
        num_correct = (logits_NV.detach().argmax(dim=-1) == labels_N).sum()
    num_labels = (labels_N != IGNORED_LABEL).sum()
    if regularization.is_on:
        loss, added = _regularized_sums(logits_NV.float(), labels_N, regularization)
        return LossSums(loss, num_labels, num_correct, regularization=added)
    loss = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
    return LossSums(loss, num_labels, num_correct)


def _regularized_sums(
    logits_NV: Tensor, labels_N: Tensor, regularization: Regularization
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy and the summed regularization; both read one log(Z)."""
    counts_N = labels_N != IGNORED_LABEL
    log_z_N = logits_NV.logsumexp(dim=-1)
    own_N = logits_NV.gather(1, labels_N.where(counts_N, 0)[:, None])[:, 0]
    losses_N = log_z_N - own_N
    mean_N = logits_NV.mean(dim=-1) if regularization.label_smoothing else None
    added_N = regularization.of_rows(log_z_N, own_N, mean_N)
    loss, added = (one.masked_fill(~counts_N, 0.0).sum() for one in (losses_N, added_N))
    return loss, added
