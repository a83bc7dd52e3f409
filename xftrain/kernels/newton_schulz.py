"""Orthogonalizes matrices by Newton-Schulz iterations, as in Muon (Jordan et al., 2024).

https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import torch
from torch import Tensor

# of a x + b x^3 + c x^5, whose slope at 0 is as large as possible: small singular values grow fast
_A, _B, _C = 3.4445, -4.7750, 2.0315
_MIN_NORM = 1e-7  # a matrix of zeros remains one


def orthogonalize(matrices_NRC: Tensor, num_steps: int, dtype: torch.dtype) -> Tensor:
    """Approximates U V^T of each matrix U S V^T, in five kernels and three for each step.

    After five steps, singular values of at least 1 % of the norm are between 0.68 and 1.14.

    Args:
        matrices_NRC: N matrices; R <= C, since the matmuls of a step have R^2 C operations.
        num_steps: number of iterations.
        dtype: dtype of the matmuls and of the result.
    """
    assert matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    norms_N11 = torch.linalg.vector_norm(matrices_NRC, dim=(1, 2), keepdim=True)
    x_NRC = (matrices_NRC / norms_N11.clamp(min=_MIN_NORM)).to(dtype)
    for _ in range(num_steps):
        gram_NRR = torch.bmm(x_NRC, x_NRC.mT)
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=_B, alpha=_C)
        x_NRC = torch.baddbmm(x_NRC, factor_NRR, x_NRC, beta=_A)
    return x_NRC
