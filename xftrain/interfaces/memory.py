"""Formulas of memory that several options share, and that are assumed where one declares none."""

from __future__ import annotations

from torch import Tensor


def logits_bytes(num_tokens: int, vocab_size: int) -> int:
    """Peak memory of torch's cross-entropy, in bytes.

    It holds three float32 tensors [N, V]: log-softmax, its gradient, the gradient of the logits.
    """
    return 3 * 4 * num_tokens * vocab_size


def two_moments_bytes(parameter: Tensor) -> int:
    """The bytes of AdamW's two moments, in the dtype of the parameter."""
    return 2 * parameter.numel() * parameter.element_size()
