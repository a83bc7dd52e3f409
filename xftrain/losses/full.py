"""Cross-entropy over the whole logits tensor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, LossSums


class Full:
    """N x V logits, then one cross-entropy in float32."""

    def unsupported(self, device: torch.device) -> list[str]:
        """Runs everywhere."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""
        return cross_entropy_sums(F.linear(x_ND, weight_VD), labels_N, with_accuracy=with_accuracy)


def cross_entropy_sums(logits_NV: Tensor, labels_N: Tensor, *, with_accuracy: bool) -> LossSums:
    """Cross-entropy, label count and number of correct guesses of logits."""
    loss = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
    num_correct = None
    if with_accuracy:
        num_correct = (logits_NV.detach().argmax(dim=-1) == labels_N).sum()
    return LossSums(loss, (labels_N != IGNORED_LABEL).sum(), num_correct)
