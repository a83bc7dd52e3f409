"""Takes the whole logits tensor where it is small beside the device's memory, else chunks."""

import logging
import os

import torch
from torch import Tensor

from xftrain.interfaces import LossSums
from xftrain.losses.chunked import Chunked
from xftrain.losses.full import Full

log = logging.getLogger(__name__)

_SHARE = 8  # logits may take 1/8 of the device's memory


class Auto:
    """`full` where the float32 logits fit in an eighth of the device's memory, else `chunked`."""

    def __init__(self) -> None:
        self._chosen: tuple[tuple[int, int], Full | Chunked] | None = None

    def unsupported(self, device: torch.device) -> list[str]:
        """Runs everywhere."""
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""
        sizes = (x_ND.shape[0], weight_VD.shape[0])
        if self._chosen is None or self._chosen[0] != sizes:
            self._chosen = (sizes, self._choose(*sizes, x_ND.device))
        return self._chosen[1](x_ND, weight_VD, labels_N, with_accuracy=with_accuracy)

    def _choose(self, num_tokens: int, vocab_size: int, device: torch.device) -> Full | Chunked:
        logits_bytes = num_tokens * vocab_size * 4
        if logits_bytes <= _memory_bytes(device) // _SHARE:
            return Full()
        log.info("loss: auto takes chunked, the logits alone would be %d MiB", logits_bytes >> 20)
        return Chunked()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
