"""Cross-entropy in chunks whose gradient overwrites the logits.

It follows Liger's fused linear cross-entropy (Hsu et al., 2024, arXiv:2410.10989), with chunks that
are large enough for matmuls at full speed. Logits are read twice and written twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xftrain.config.fields import NonNegativeFloat, PositiveInt, Probability
from xftrain.interfaces import IGNORED_LABEL, LossSums
from xftrain.kernels.matmul import matmul_
from xftrain.kernels.softmax_gradient import Regularization, has_kernel, softmax_gradient_


class Fused:
    """Computes the logits of `chunk_tokens` tokens at a time; their gradient overwrites them.

    The gradients of the hidden states and of the output matrix are computed in the forward pass, so
    nothing of the size of the logits is saved for the backward pass, and nothing is recomputed.

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
        chunk_tokens: PositiveInt = 16384,
        z_loss: NonNegativeFloat = 0.0,
        label_smoothing: Probability = 0.0,
    ) -> None:
        self.chunk_tokens = chunk_tokens
        self.regularization = Regularization(z_loss, label_smoothing)

    def unsupported(self, device: torch.device) -> list[str]:
        """Returns no reasons: this loss runs on every device, though it is faster only on a GPU."""
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
        dtype = x_ND.dtype
        if torch.is_autocast_enabled(x_ND.device.type):
            dtype = torch.get_autocast_dtype(x_ND.device.type)
        needs_grad = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)
        how = (dtype, self.chunk_tokens, needs_grad, self.regularization, softcap)
        loss, num_correct, added = _FusedLinearCrossEntropy.apply(x_ND, weight_VD, labels_N, *how)
        num_labels = (labels_N != IGNORED_LABEL).sum()
        num_correct = num_correct if with_accuracy else None
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

        The gradient of the weight needs another tensor of its size, either a copy in the weight's
        dtype or the term of one chunk, unless the matmul accumulates and the weight is float32.
        """
        vocab_size = weight_VD.shape[0]
        rows = min(num_tokens, self.chunk_tokens)
        on_gpu = device.type == "cuda" and dtype.itemsize == 2
        part = 0 if on_gpu and weight_VD.dtype == torch.float32 else dtype.itemsize
        # without the Triton kernel, float32 logits, capped ones and their log-softmax exist as well
        wide = 0 if has_kernel(device) else 2 * 4 + (0 if softcap is None else 4)
        logit = dtype.itemsize + wide
        return rows * vocab_size * logit + gradient_bytes(num_tokens, weight_VD, dtype, part)


def gradient_bytes(
    num_tokens: int, weight_VD: Tensor, dtype: torch.dtype, part_itemsize: int
) -> int:
    """Bytes of the gradients of hidden states and weight, which the forward pass computes.

    Args:
        num_tokens: N.
        weight_VD: the output matrix.
        dtype: dtype of matmuls, and of the gradient of the hidden states.
        part_itemsize: bytes per element of the tensor beside the weight's float32 gradient.
    """
    vocab_size, dim = weight_VD.shape
    return num_tokens * dim * dtype.itemsize + vocab_size * dim * (4 + part_itemsize)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Maps (x_ND, weight_VD, labels_N) to the loss, the correct predictions, the regularization.

    All are sums. The gradient of the loss includes that of the regularization, which has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        dtype: torch.dtype,
        chunk_tokens: int,
        needs_grad: bool,
        regularization: Regularization,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.autocast(x_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            loss = torch.zeros((), device=x_ND.device, dtype=torch.float32)
            num_correct = torch.zeros((), device=x_ND.device, dtype=torch.int64)
            added = torch.zeros_like(loss) if regularization.is_on else None
            grad_x = torch.empty_like(x_ND) if needs_grad else None
            trains_weight = needs_grad and weight_VD.requires_grad
            num_tokens = x_ND.shape[0]
            allocate = torch.empty_like if num_tokens else torch.zeros_like
            grad_weight = allocate(weight_VD, dtype=torch.float32) if trains_weight else None
            sizes = (min(chunk_tokens, num_tokens), weight.shape[0])
            buffer = torch.empty(sizes, device=x_ND.device, dtype=dtype)
            for start in range(0, num_tokens, chunk_tokens):
                here = slice(start, start + chunk_tokens)
                x = x_ND[here].to(dtype)
                logits = matmul_(x, weight.t(), buffer[: x.shape[0]])
                rows = softmax_gradient_(
                    *(logits, labels_N[here]),
                    needs_grad=needs_grad,
                    regularization=regularization,
                    softcap=softcap,
                )
                loss += rows.losses_N.sum()
                num_correct += rows.correct_N.sum()
                if added is not None and rows.regularization_N is not None:
                    added += rows.regularization_N.sum()
                if grad_x is None:
                    continue
                grad_x[here] = logits @ weight  # `logits` holds their gradient by now
                if grad_weight is not None:
                    _accumulate_matmul_(grad_weight, logits.t(), x, is_first=start == 0)
        if grad_x is not None:
            cast = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
            ctx.save_for_backward(grad_x, cast)
        ctx.has_run_backward, ctx.chunk_tokens = False, chunk_tokens
        ctx.mark_non_differentiable(num_correct, *([] if added is None else [added]))
        return loss, num_correct, added

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.has_run_backward:
            raise RuntimeError("loss=fused: a second backward pass through one forward pass")
        ctx.has_run_backward = True
        grad_x, grad_weight = ctx.saved_tensors
        # in place, as no other pass uses them; in float32, as bfloat16 would round 1 / labels
        weights = [] if grad_weight is None else [grad_weight]
        for part in (*grad_x.split(ctx.chunk_tokens), *weights):
            part.copy_(part.float().mul_(grad))
        return grad_x, grad_weight, *[None] * 6


def _accumulate_matmul_(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Adds `a b` to the total in float32, since the sum may overflow float16 (above 65,504).

    Args:
        total: float32 [V, D]; not initialized before the first call.
        a: [V, N].
        b: [N, D].
        is_first: whether to overwrite the total.
    """
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        # the matmul accumulates, without another pass over the total
        beta = 0.0 if is_first else 1.0
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
        return
    part = a.float() @ b.float() if a.dtype == torch.float16 else a @ b
    if is_first:
        total.copy_(part)
    else:
        total.add_(part)
