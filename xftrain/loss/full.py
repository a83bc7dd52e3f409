"""Cross-entropy over the whole logits tensor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, LossSums, logits_bytes


class Full:
    """Computes all N x V logits, then their cross-entropy in float32."""

    smaller_option = "chunked"

    def unsupported(self, device: torch.device) -> list[str]:
        """Returns no reasons, since this loss runs on every device."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Computes the sums over all labels that are not ignored, see `Loss`."""
        return cross_entropy_sums(F.linear(x_ND, weight_VD), labels_N, with_accuracy=with_accuracy)

    def peak_bytes(
        self, num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, device: torch.device
    ) -> int:
        """Peak bytes: those of all logits."""
        return logits_bytes(num_tokens, weight_VD.shape[0])


def cross_entropy_sums(logits_NV: Tensor, labels_N: Tensor, *, with_accuracy: bool) -> LossSums:
    """Summed cross-entropy, number of labels and number of correct predictions for given logits."""
    loss = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
    num_correct = None
    if with_accuracy:
        num_correct = (logits_NV.detach().argmax(dim=-1) == labels_N).sum()
    return LossSums(loss, (labels_N != IGNORED_LABEL).sum(), num_correct)
