"""Cross-entropy in chunks, recomputed in the backward pass: no N x V logits exist at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.config.fields import NonNegativeFloat, PositiveInt, Probability
from xftrain.interfaces import LossSums
from xftrain.kernels.softmax_gradient import Regularization
from xftrain.loss.full import cross_entropy_sums, full_bytes


class Chunked:
    """Computes the logits of `chunk_tokens` tokens at a time.

    Args:
        chunk_tokens: tokens whose logits exist at once.
        z_loss: weight of the mean of log(Z)^2, see `Regularization`.
        label_smoothing: share of the label's probability that all tokens share, see
            `Regularization`.
    """

    takes_softcap = True

    def __init__(
        self,
        *,
        chunk_tokens: PositiveInt = 4096,
        z_loss: NonNegativeFloat = 0.0,
        label_smoothing: Probability = 0.0,
    ) -> None:
        self.chunk_tokens = chunk_tokens
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

        def chunk(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            sums = cross_entropy_sums(
                *(F.linear(x, weight), labels, self.regularization, softcap),
                with_accuracy=with_accuracy,
            )
            return tuple(one for one in sums if one is not None)

        parts = [
            # nothing is random here, and CUDA graph capture forbids reading the RNG state
            checkpoint(
                *(chunk, x, weight_VD, labels), use_reentrant=False, preserve_rng_state=False
            )
            for x, labels in zip(
                x_ND.split(self.chunk_tokens), labels_N.split(self.chunk_tokens), strict=True
            )
        ]
        totals = iter([torch.stack(column).sum() for column in zip(*parts, strict=True)])
        loss, num_labels = next(totals), next(totals)
        num_correct = next(totals) if with_accuracy else None
        return LossSums(loss, num_labels, num_correct, regularization=next(totals, None))

    def peak_bytes(
        self,
        num_tokens: int,
        weight_VD: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        softcap: float | None = None,
    ) -> int:
        """Peak bytes: those of the logits of one chunk."""
        rows = min(num_tokens, self.chunk_tokens)
        return full_bytes(rows, weight_VD.shape[0], self.regularization, softcap)
