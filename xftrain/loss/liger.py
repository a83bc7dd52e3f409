"""Liger's fused linear cross-entropy (Hsu et al., 2024, arXiv:2410.10989).

liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss: Triton, chunked, gradients computed in
the forward pass.
"""

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, LossSums
from xftrain.loss.fused import gradient_bytes


class Liger:
    """Computes the loss by Liger's kernel, without N x V logits; CUDA only."""

    no_cuda_graph = "it waits for the device to count the labels: use loss=auto"

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons against: no CUDA device, or liger-kernel is not installed."""
        if device.type != "cuda":
            return [f"loss=liger needs a CUDA GPU, got {device.type}: use loss=chunked"]
        if importlib.util.find_spec("liger_kernel") is None:
            return ["loss=liger needs the package: pip install liger-kernel"]
        return []

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Computes the sums over all labels that are not ignored, see `Loss`."""
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        if torch.is_autocast_enabled(x_ND.device.type):
            # autocast does not act within the autograd.Function
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
        """Peak bytes: a chunk's logits, and float32 gradients of hidden states and weight.

        Liger sizes chunks so that the logits of one take about as much as the hidden states.
        """
        vocab_size, dim = weight_VD.shape
        chunks = -(-vocab_size // dim)
        rows = min(num_tokens, 1 << (-(-num_tokens // chunks) - 1).bit_length())
        gradients = gradient_bytes(num_tokens, weight_VD, dtype, dtype.itemsize)
        return rows * vocab_size * dtype.itemsize + gradients

    @staticmethod
    def _num_correct(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        """Counts correct predictions in recomputed chunks, as the kernel returns no logits."""
        predictions = [F.linear(x, weight_VD).argmax(dim=-1) for x in x_ND.split(4096)]
        return (torch.cat(predictions) == labels_N).sum()
