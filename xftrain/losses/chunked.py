"""Cross-entropy in chunks, recomputed in the backward pass: no N x V logits are ever kept."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.fields import PositiveInt
from xftrain.interfaces import LossSums
from xftrain.losses.full import cross_entropy_sums, logits_bytes


class Chunked:
    """Logits for `chunk_tokens` tokens at a time.

    Args:
        chunk_tokens: tokens whose logits exist at once.
    """

    def __init__(self, *, chunk_tokens: PositiveInt = 4096) -> None:
        self.chunk_tokens = chunk_tokens

    def unsupported(self, device: torch.device) -> list[str]:
        """Runs everywhere."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""

        def chunk(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            sums = cross_entropy_sums(F.linear(x, weight), labels, with_accuracy=with_accuracy)
            counts = (sums.num_labels,) if sums.num_correct is None else sums[1:]
            return sums.loss, *(count for count in counts if count is not None)

        parts = [
            # nothing is random here, and a CUDA graph cannot ask for the generator's state
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
        """Those of one chunk's logits."""
        return logits_bytes(min(num_tokens, self.chunk_tokens), weight_VD.shape[0])
