"""Liger's fused linear cross-entropy (Hsu et al., 2024, arXiv:2410.10989).

liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss: Triton, chunked, gradients computed in
the forward pass.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.config.fields import NonNegativeFloat, Probability
from xftrain.interfaces import IGNORED_LABEL, LossSums
from xftrain.kernels.softcap import softcapped
from xftrain.kernels.softmax_gradient import Regularization
from xftrain.loss.chunked import Chunked
from xftrain.loss.fused import gradient_bytes


class Liger:
    """Computes the loss by Liger's kernel, without N x V logits; CUDA only.

    The kernel returns one sum, so with regularization the logits are computed once more, for the
    cross-entropy alone.

    Args:
        z_loss: weight of the mean of log(Z)^2, see `Regularization`.
        label_smoothing: share of the label's probability that all tokens share, see
            `Regularization`.
    """

    takes_softcap = True
    no_cuda_graph = "it waits for the device to count the labels: use loss=auto"

    def __init__(
        self, *, z_loss: NonNegativeFloat = 0.0, label_smoothing: Probability = 0.0
    ) -> None:
        self.regularization = Regularization(z_loss, label_smoothing)
        self._plain = Chunked()  # the cross-entropy alone

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons against: no CUDA device, or liger-kernel is not installed."""
        if device.type != "cuda":
            return [f"loss=liger needs a CUDA GPU, got {device.type}: use loss=chunked"]
        if importlib.util.find_spec("liger_kernel") is None:
            return ["loss=liger needs the package: pip install liger-kernel"]
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
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        if torch.is_autocast_enabled(x_ND.device.type):
            # autocast does not act within the autograd.Function
            dtype = torch.get_autocast_dtype(x_ND.device.type)
            x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
        minimized = LigerFusedLinearCrossEntropyFunction.apply(
            *(x_ND, weight_VD, labels_N, None, None, IGNORED_LABEL, *self.regularization, "sum"),
            softcap,
        )[0]
        loss, added, num_correct = minimized, None, None
        if self.regularization.is_on:
            with torch.no_grad():
                plain = self._plain(
                    x_ND, weight_VD, labels_N, with_accuracy=with_accuracy, softcap=softcap
                )
            added, num_correct = minimized.detach() - plain.loss, plain.num_correct
            loss = minimized - added  # its gradient includes that of the regularization
        elif with_accuracy:
            num_correct = self._num_correct(x_ND.detach(), weight_VD.detach(), labels_N, softcap)
        num_labels = (labels_N != IGNORED_LABEL).sum()
        return LossSums(loss, num_labels, num_correct, regularization=added)

    def peak_bytes(
        self,
        num_tokens: int,
        weight_VD: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        softcap: float | None = None,
    ) -> int:
        """Peak bytes: a chunk's logits, and float32 gradients of hidden states and weight.

        Liger sizes chunks so that the logits of one take about as much as the hidden states.
        """
        vocab_size, dim = weight_VD.shape
        chunks = -(-vocab_size // dim)
        rows = min(num_tokens, 1 << (-(-num_tokens // chunks) - 1).bit_length())
        gradients = gradient_bytes(num_tokens, weight_VD, dtype, dtype.itemsize)
        logits = rows * vocab_size * dtype.itemsize
        if self.regularization.is_on:
            logits = max(
                logits, self._plain.peak_bytes(num_tokens, weight_VD, dtype, device, softcap)
            )
        return logits + gradients

    @staticmethod
    def _num_correct(
        x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, softcap: float | None
    ) -> Tensor:
        """Counts correct predictions in recomputed chunks, as the kernel returns no logits."""
        logits = (F.linear(x, weight_VD) for x in x_ND.split(4096))
        if softcap is not None:  # it may make logits equal
            logits = (softcapped(one, softcap) for one in logits)
        predictions = [one.argmax(dim=-1) for one in logits]
        return (torch.cat(predictions) == labels_N).sum()
