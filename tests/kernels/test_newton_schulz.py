"""Newton-Schulz iterations, compared with the polynomial applied to singular values in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xftrain.kernels.newton_schulz import orthogonalize


def by_svd(matrix_RC: Tensor, num_steps: int) -> Tensor:
    """What the iterations are defined to compute: an odd polynomial of each singular value."""
    u, s, vh = torch.linalg.svd(matrix_RC.double(), full_matrices=False)
    s = s / s.square().sum().sqrt().clamp(min=1e-7)
    for _ in range(num_steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vh


@settings(max_examples=12, deadline=None)
@given(
    number=st.integers(1, 3),
    rows=st.integers(1, 12),
    more=st.integers(0, 9),
    num_steps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_each_matrix_of_a_batch_is_that_of_its_singular_values(number, rows, more, num_steps, seed):
    torch.manual_seed(seed)
    matrices = torch.randn(number, rows, rows + more, dtype=torch.float64)
    found = orthogonalize(matrices, num_steps, torch.float64)
    expected = torch.stack([by_svd(matrix, num_steps) for matrix in matrices])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_error_is_that_of_the_dtype(dtype, error):
    torch.manual_seed(0)
    matrices = torch.randn(2, 24, 40)
    found = orthogonalize(matrices, 5, dtype)
    assert found.dtype == dtype
    expected = torch.stack([by_svd(matrix, 5) for matrix in matrices])
    assert (found.double() - expected).abs().max() < error


def test_singular_values_above_a_hundredth_of_the_norm_come_near_one():
    torch.manual_seed(0)
    (u, _), (v, _) = (torch.linalg.qr(torch.randn(2, n, 32, dtype=torch.float64)) for n in (32, 48))
    values = torch.logspace(-2, 0, 32, dtype=torch.float64)
    values = values / values.square().sum().sqrt()
    kept = values >= 0.01
    assert 5 < kept.sum() < 32
    found = orthogonalize((u * values) @ v.mT, 5, torch.float64)
    after = torch.diagonal(u.mT @ found @ v, dim1=1, dim2=2)[:, kept]
    assert 0.67 < after.min() and after.max() < 1.15


def test_the_size_of_a_matrix_does_not_matter_and_zeros_remain():
    torch.manual_seed(0)
    matrices = torch.randn(1, 4, 6).repeat(3, 1, 1) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    found = orthogonalize(matrices, 5, torch.float32)
    assert torch.allclose(found, found[1:2].expand(3, 4, 6), atol=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6), 5, torch.float32), torch.zeros(1, 4, 6))
