"""Cross-entropy in chunks, recomputed in the backward pass: no N x V logits exist at once."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.config.fields import PositiveInt
from xftrain.interfaces import LossSums, logits_bytes
from xftrain.loss.full import cross_entropy_sums


class Chunked:
    """Computes the logits of `chunk_tokens` tokens at a time.

    Args:
        chunk_tokens: tokens whose logits exist at once.
    """

    def __init__(self, *, chunk_tokens: PositiveInt = 4096) -> None:
        self.chunk_tokens = chunk_tokens

    def unsupported(self, device: torch.device) -> list[str]:
        """Returns no reasons, since this loss runs on every device."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Computes the sums over all labels that are not ignored, see `Loss`."""

        def chunk(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            sums = cross_entropy_sums(F.linear(x, weight), labels, with_accuracy=with_accuracy)
            counts = (sums.num_labels,) if sums.num_correct is None else sums[1:]
            return sums.loss, *(count for count in counts if count is not None)

        parts = [
            # nothing is random here, and CUDA graph capture forbids reading the RNG state
            checkpoint(
                *(chunk, x, weight_VD, labels), use_reentrant=False, preserve_rng_state=False
            )
            for x, labels in zip(
                x_ND.split(self.chunk_tokens), labels_N.split(self.chunk_tokens), strict=True
            )
        ]
        totals = [torch.stack(column).sum() for column in zip(*parts, strict=True)]
        return LossSums(totals[0], totals[1], totals[2] if with_accuracy else None)

    def peak_bytes(
        self, num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, device: torch.device
    ) -> int:
        """Peak bytes: those of the logits of one chunk."""
        return logits_bytes(min(num_tokens, self.chunk_tokens), weight_VD.shape[0])
