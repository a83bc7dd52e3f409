"""Cross-entropy over the whole logits tensor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, LossSums


class Full:
    """N x V logits, then one cross-entropy in float32."""

    smaller_option = "chunked"

    def unsupported(self, device: torch.device) -> list[str]:
        """Runs everywhere."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""
        return cross_entropy_sums(F.linear(x_ND, weight_VD), labels_N, with_accuracy=with_accuracy)

    def peak_bytes(
        self, num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, device: torch.device
    ) -> int:
        """Those of the whole logits."""
        return logits_bytes(num_tokens, weight_VD.shape[0])


def logits_bytes(num_tokens: int, vocab_size: int) -> int:
    """What torch's cross-entropy needs at once, in bytes.

    Three float32 tensors, N x V each: the log-softmax, its gradient, and that of the logits.
    """
    return 3 * 4 * num_tokens * vocab_size


def cross_entropy_sums(logits_NV: Tensor, labels_N: Tensor, *, with_accuracy: bool) -> LossSums:
    """Cross-entropy, label count and number of correct guesses of logits."""
    loss = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
    num_correct = None
    if with_accuracy:
        num_correct = (logits_NV.detach().argmax(dim=-1) == labels_N).sum()
    return LossSums(loss, (labels_N != IGNORED_LABEL).sum(), num_correct)
