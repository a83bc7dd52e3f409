"""On a GPU `fused`; elsewhere the whole logits tensor where it is small, else chunks of it."""

import logging

import torch
from torch import Tensor

from xftrain.interfaces import LossSums
from xftrain.kernels.softmax_gradient import has_kernel
from xftrain.losses.chunked import Chunked
from xftrain.losses.full import Full
from xftrain.losses.fused import Fused
from xftrain.memory import total_memory_bytes

log = logging.getLogger(__name__)

_SHARE = 8  # logits may take 1/8 of the device's memory
_MAX_LOGITS = 2**30  # of the fused loss, at once


class Auto:
    """`fused` on a GPU where Triton runs: it is the fastest and keeps no logits.

    Elsewhere `full`, where the float32 logits fit in an eighth of the memory, or `chunked`.
    """

    def __init__(self) -> None:
        self._chosen: tuple[tuple[int, int], Full | Chunked | Fused] | None = None

    def unsupported(self, device: torch.device) -> list[str]:
        """Runs everywhere."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""
        loss = self.choice(x_ND.shape[0], weight_VD.shape[0], x_ND.device)
        return loss(x_ND, weight_VD, labels_N, with_accuracy=with_accuracy)

    def choice(
        self, num_tokens: int, vocab_size: int, device: torch.device
    ) -> Full | Chunked | Fused:
        """The loss for so many tokens, kept while batches stay alike."""
        sizes = (num_tokens, vocab_size)
        if self._chosen is None or self._chosen[0] != sizes:
            self._chosen = (sizes, self._choose(*sizes, device))
        return self._chosen[1]

    def peak_bytes(
        self, num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, device: torch.device
    ) -> int:
        """The chosen loss's."""
        loss = self.choice(num_tokens, weight_VD.shape[0], device)
        return loss.peak_bytes(num_tokens, weight_VD, dtype, device)

    def _choose(
        self, num_tokens: int, vocab_size: int, device: torch.device
    ) -> Full | Chunked | Fused:
        if has_kernel(device):
            return Fused(chunk_tokens=max(1024, min(16384, _MAX_LOGITS // vocab_size)))
        logits_bytes = num_tokens * vocab_size * 4
        if logits_bytes <= total_memory_bytes(device) // _SHARE:
            return Full()
        log.info("loss: auto takes chunked, the logits alone would be %d MiB", logits_bytes >> 20)
        return Chunked()
