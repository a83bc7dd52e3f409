"""Liger's fused linear cross-entropy (Hsu et al., 2024, arXiv:2410.10989).

liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss: Triton, chunked, gradients computed in
the forward pass.
"""

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, LossSums
from xftrain.losses.fused import gradient_bytes


class Liger:
    """No N x V logits; CUDA only."""

    no_cuda_graph = "it waits for the device to count the labels: use loss=auto"

    def unsupported(self, device: torch.device) -> list[str]:
        """Needs CUDA and the package."""
        if device.type != "cuda":
            return [f"loss=liger needs a CUDA GPU, got {device.type}: use loss=chunked"]
        if importlib.util.find_spec("liger_kernel") is None:
            return ["loss=liger needs the package: pip install liger-kernel"]
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the labels that count."""
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        if torch.is_autocast_enabled(x_ND.device.type):
            # the Function is opaque to autocast
            dtype = torch.get_autocast_dtype(x_ND.device.type)
            x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
        loss = LigerFusedLinearCrossEntropyFunction.apply(
            x_ND, weight_VD, labels_N, None, None, IGNORED_LABEL, 0.0, 0.0, "sum"
        )[0]
        num_correct = None
        if with_accuracy:
            num_correct = self._num_correct(x_ND.detach(), weight_VD.detach(), labels_N)
        return LossSums(loss, (labels_N != IGNORED_LABEL).sum(), num_correct)

    def peak_bytes(
        self, num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, device: torch.device
    ) -> int:
        """A chunk's logits, and the gradients of the hidden states and of the weight in float32.

        Liger's chunks are so long that all logits take about as much as the hidden states.
        """
        vocab_size, dim = weight_VD.shape
        chunks = -(-vocab_size // dim)
        rows = min(num_tokens, 1 << (-(-num_tokens // chunks) - 1).bit_length())
        gradients = gradient_bytes(num_tokens, weight_VD, dtype, dtype.itemsize)
        return rows * vocab_size * dtype.itemsize + gradients

    @staticmethod
    def _num_correct(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        """The kernel returns no logits: guesses are made again, in chunks."""
        guesses = [F.linear(x, weight_VD).argmax(dim=-1) for x in x_ND.split(4096)]
        return (torch.cat(guesses) == labels_N).sum()
