"""Features beside vectors: by the kernel and by copies, whatever the layout of the vectors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xftrain.kernels import prepend_features as module
from xftrain.kernels.prepend_features import has_kernel, prepend_features

CUDA = torch.device("cuda", 0)  # as tensors say it


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of x at each launch of the kernel, which runs where there is a GPU."""
    assert not torch.cuda.is_available() or has_kernel(CUDA)
    found: list[tuple[int, ...]] = []
    with_triton = module._with_triton

    def counted(x: torch.Tensor, features: torch.Tensor, joined: torch.Tensor) -> None:
        found.append(tuple(x.shape))
        with_triton(x, features, joined)

    monkeypatch.setattr(module, "_with_triton", counted)
    return found


@pytest.mark.parametrize(
    ("device", "least"),
    [
        ("cpu", 0),
        pytest.param("cuda", 0, marks=pytest.mark.cuda),  # by the kernel
        pytest.param("cuda", 2**62, marks=pytest.mark.cuda),  # by copies
    ],
)
@pytest.mark.parametrize(
    ("heads", "head_dim", "width", "positions_and_heads"),
    [(3, 16, 16, (1, 3)), (2, 40, 7, (37, 1)), (40, 64, 48, (37, 40)), (1, 128, 16, (1, 1))],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_go_in_front_of_a_vector_of_any_strides(
    device, least, heads, head_dim, width, positions_and_heads, dtype, launches, monkeypatch
):
    monkeypatch.setattr(module, "_MIN_ELEMENTS", least)
    qkv = torch.randn(2, 37, 3, heads, head_dim, device=device, dtype=dtype)
    features = torch.randn(1, *positions_and_heads, width, device=device, dtype=dtype)
    heads_first = qkv[:, :, 2].transpose(1, 2).contiguous().transpose(1, 2)
    for x in (qkv[:, :, 1], qkv[:, :, 0].mT.contiguous().mT, heads_first):
        x = x.detach().requires_grad_()
        joined = prepend_features(x, features)
        want = torch.cat([features.expand(2, 37, heads, -1), x], dim=-1)
        assert torch.equal(joined, want) and joined.is_contiguous()
        grad = torch.randn_like(want)
        assert torch.equal(torch.autograd.grad(joined, x, grad)[0], grad[..., width:])
    assert len(launches) == (3 if device == "cuda" and least == 0 else 0)


@pytest.mark.cuda
def test_a_fake_tensor_launches_nothing(launches, monkeypatch):
    monkeypatch.setattr(module, "_MIN_ELEMENTS", 0)
    with FakeTensorMode():
        x, features = (torch.empty(1, 4, 2, n, device=CUDA) for n in (16, 8))
        assert prepend_features(x, features).shape == (1, 4, 2, 24)
    assert not launches


@pytest.mark.cuda
def test_compiled_code_copies(launches):
    x = torch.randn(4, 512, 32, 64, device=CUDA)
    features = torch.randn(1, 1, 32, 16, device=CUDA)
    assert x.numel() >= module._MIN_ELEMENTS
    joined = torch.compile(prepend_features, fullgraph=True)(x, features)
    assert torch.equal(joined, prepend_features(x, features)) and len(launches) == 1
