"""Chooses `fused` on a GPU, else `full` if the logits are small, else `chunked`."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from xftrain.config.fields import NonNegativeFloat, Probability
from xftrain.interfaces import LossSums
from xftrain.kernels.softmax_gradient import Regularization, has_kernel
from xftrain.loss.chunked import Chunked
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused
from xftrain.utils.device_memory import total_memory_bytes

log = logging.getLogger(__name__)

_MEMORY_DIVISOR = 8  # logits may take 1/8 of the device's memory
_MAX_LOGITS = 2**30  # maximum number of logits in a chunk of the fused loss


class Auto:
    """Chooses `fused` on a GPU with Triton, as it is the fastest and saves no logits.

    Elsewhere it chooses `full` if the float32 logits fit in an eighth of the memory, else
    `chunked`.

    Args:
        z_loss: weight of the mean of log(Z)^2, see `Regularization`.
        label_smoothing: share of the label's probability that all tokens share, see
            `Regularization`.
    """

    takes_softcap = True

    def __init__(
        self, *, z_loss: NonNegativeFloat = 0.0, label_smoothing: Probability = 0.0
    ) -> None:
        self.regularization = Regularization(z_loss, label_smoothing)
        self._chosen: tuple[tuple[int, int], Full | Chunked | Fused] | None = None

    def unsupported(self, device: torch.device) -> list[str]:
        """Returns no reasons, since a loss runs on every device."""
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
        """Computes the sums with the chosen loss, see `Loss`."""
        loss = self.choice(x_ND.shape[0], weight_VD.shape[0], x_ND.device)
        return loss(x_ND, weight_VD, labels_N, with_accuracy=with_accuracy, softcap=softcap)

    def choice(
        self, num_tokens: int, vocab_size: int, device: torch.device
    ) -> Full | Chunked | Fused:
        """The loss for a batch of this size, cached until the size changes."""
        sizes = (num_tokens, vocab_size)
        if self._chosen is None or self._chosen[0] != sizes:
            self._chosen = (sizes, self._choose(*sizes, device))
        return self._chosen[1]

    def peak_bytes(
        self,
        num_tokens: int,
        weight_VD: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        softcap: float | None = None,
    ) -> int:
        """The peak bytes of the chosen loss."""
        loss = self.choice(num_tokens, weight_VD.shape[0], device)
        return loss.peak_bytes(num_tokens, weight_VD, dtype, device, softcap)

    def _choose(
        self, num_tokens: int, vocab_size: int, device: torch.device
    ) -> Full | Chunked | Fused:
        terms = self.regularization._asdict()
        if has_kernel(device):
            chunk_tokens = max(1024, min(16384, _MAX_LOGITS // vocab_size))
            return Fused(chunk_tokens=chunk_tokens, **terms)
        logits_bytes = num_tokens * vocab_size * 4
        if logits_bytes <= total_memory_bytes(device) // _MEMORY_DIVISOR:
            return Full(**terms)
        log.info(
            "loss: auto takes chunked, as the logits alone would take %d MiB", logits_bytes >> 20
        )
        return Chunked(**terms)
