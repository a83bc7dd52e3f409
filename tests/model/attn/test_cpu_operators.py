"""xFormers' operators for the CPU, called by its own function beneath the backend's checks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xftrain.benchmark.reference import output_and_grads
from xftrain.interfaces import AttnBias
from xftrain.model.attn.xformers_ops.cpu import CPUBackward, CPUForward, fmha

masks = fmha.attn_bias
OPS = (CPUForward, CPUBackward)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 2e-2}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: object = None) -> Tensor:
    out: Tensor = fmha.memory_efficient_attention(q, k, v, mask, op=OPS)
    return out


def meant(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = torch.einsum("bihk,bjhk->bhij", q, k) * q.shape[-1] ** -0.5 + bias
    empty = torch.isneginf(scores).all(dim=-1, keepdim=True)
    probs = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return torch.einsum("bhij,bjhk->bihk", probs, v)


def check(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: object, bias: Tensor) -> None:
    """Output and gradients are those that the bias means in float64."""
    mine = output_and_grads(lambda *qkv: attend(*qkv, mask), (q, k, v), grad)
    wide = tuple(x.double() for x in (q, k, v))
    right = output_and_grads(lambda *qkv: meant(*qkv, bias.double()), wide, grad.double())
    for value, truth in zip(mine, right, strict=True):
        assert value.shape == truth.shape
        bound = TOLERANCE[q.dtype] * (1 + truth.abs().amax()) if truth.numel() else 0
        assert not truth.numel() or (value - truth).abs().max() <= bound


def strided(layout: str, *shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers that lie in memory in another way than their shape says."""
    if layout == "last":
        return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]
    if layout == "turned":
        return torch.randn(*shape[:2], shape[3], shape[2]).to(dtype).transpose(2, 3)
    if layout == "expanded":
        return torch.randn(shape[0], shape[1], 1, 1).to(dtype).expand(shape)
    return torch.randn(*shape).to(dtype)


@given(
    layouts=st.tuples(*[st.sampled_from(["plain", "last", "turned", "expanded"])] * 4),
    bias_layout=st.sampled_from(["none", "plain", "last", "turned", "expanded"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    rows=st.integers(0, 2),
    num_queries=st.sampled_from([0, 1, 5, 140]),
    num_keys=st.sampled_from([0, 1, 5, 140]),
    head_dim=st.sampled_from([1, 7, 16]),
)
def test_any_strides_and_sizes(layouts, bias_layout, dtype, rows, num_queries, num_keys, head_dim):
    # a last stride other than 1 was read as 1, and no keys or rows ended the process (SIGFPE)
    torch.manual_seed(0)
    sizes = (num_queries, num_keys, num_keys, num_queries)
    q, k, v, grad = (
        strided(layout, rows, n, 2, head_dim, dtype=dtype)
        for layout, n in zip(layouts, sizes, strict=True)
    )
    mask, bias = None, torch.zeros(rows, 2, num_queries, num_keys)
    if bias_layout != "none":
        mask = bias = strided(bias_layout, rows, 2, num_queries, num_keys, dtype=dtype)
    check(q, k, v, grad, mask, bias)


@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, 20, 140]), min_size=1, max_size=4),
    key_lengths=st.none() | st.lists(st.sampled_from([0, 1, 30]), min_size=4, max_size=4),
    kind=st.sampled_from(["full", "causal", "window"]),
    window=st.sampled_from([1, 19, 20, 139, 140]),
)
def test_documents_of_any_lengths_or_a_refusal(lengths, key_lengths, kind, window):
    torch.manual_seed(0)
    keys = lengths if key_lengths is None else key_lengths[: len(lengths)]
    mask = masks.BlockDiagonalMask.from_seqlens(lengths, keys)
    if kind == "causal":
        mask = masks.BlockDiagonalCausalMask.from_seqlens(lengths, keys)
    elif kind == "window":
        try:
            mask = mask.make_local_attention(window)
        except RuntimeError:  # xFormers wants a key for every query
            return
    q, k, v, grad = (
        torch.randn(1, sum(n), 2, 8, dtype=torch.float64) for n in (lengths, keys, keys, lengths)
    )
    if kind != "full" and lengths != keys:
        with pytest.raises(ValueError, match="query and key lengths of a document differ"):
            attend(q, k, v, mask)
        return
    check(q, k, v, grad, mask, mask.materialize((1, 2, sum(lengths), sum(keys))))


@pytest.mark.parametrize("length", [130, 300])
@pytest.mark.parametrize("short_of", [0, 1, 2])
def test_a_window_about_as_long_as_the_row(length: int, short_of: int) -> None:
    # of a window that is one key shorter, the last query alone sees less
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, length, 2, 8, dtype=torch.float64) for _ in range(4))
    window = length - short_of
    mask = masks.LowerTriangularFromBottomRightMask().make_local_attention(window)
    check(q, k, v, grad, mask, AttnBias(window=window).materialize(length))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, bias: {"attn_bias": bias.float()}, "attn_bias is torch.float32"),
        (lambda q, bias: {"attn_bias": bias > 0}, "attn_bias is torch.bool"),
        (lambda q, bias: {"attn_bias": bias.requires_grad_()}, "gradient of attn_bias"),
        (lambda q, bias: {"key": q.float()}, "same dtype"),
        (
            lambda q, bias: {"attn_bias": masks.BlockDiagonalMask.from_seqlens([5, 5])},
            "2 documents of 10 queries and 2 of 10 keys, for 8 and 8",
        ),
        (
            lambda q, bias: {"attn_bias": masks.BlockDiagonalCausalMask.from_seqlens([5, 2])},
            "for 8 and 8",
        ),
        (lambda q, bias: {n: q[..., :0] for n in ("query", "key", "value")}, r"shape\[-1\] is 0"),
        (lambda q, bias: {"p": 0.5}, "dropout"),
    ],
)
def test_what_would_be_read_wrong_is_refused(change, said: str) -> None:
    q, bias = torch.randn(1, 8, 2, 4, dtype=torch.float64), torch.zeros(1, 2, 8, 8).double()
    inputs = {"query": q, "key": q, "value": q, **change(q, bias)}
    for needs_grad in (False, True):
        if needs_grad:
            inputs["query"] = inputs["query"].detach().requires_grad_()
        with pytest.raises(ValueError, match=said):
            fmha.memory_efficient_attention(**inputs, op=OPS)


def test_a_bias_of_the_legacy_format_has_its_shape_checked() -> None:
    # xFormers checks that of [B, M, H, K] alone
    q = torch.randn(2, 8, 4)
    with pytest.raises(ValueError, match="attn_bias is of"):
        attend(q, q, q, torch.zeros(1, 8, 8))
    assert torch.allclose(attend(q, q, q, torch.zeros(2, 8, 8)), attend(q, q, q), atol=1e-6)


def test_the_backward_operator_checks_for_itself() -> None:
    # xFormers leaves out its checks there, and a forward operator of another kind may come first
    class Any_(CPUForward):
        NAME = "any"

        @classmethod
        def not_supported_reasons(cls, d: object) -> list[str]:
            return []

    q = torch.randn(1, 8, 2, 4, requires_grad=True)
    bias = torch.zeros(1, 2, 8, 8, requires_grad=True)
    out = fmha.memory_efficient_attention(q, q, q, bias, op=(Any_, CPUBackward))
    with pytest.raises(ValueError, match="CPUBackward does not support"):
        out.sum().backward()


def test_a_query_without_keys_gets_0_and_none_of_the_mass() -> None:
    mask = masks.BlockDiagonalMask.from_seqlens([2, 3], [0, 4])
    q, k = torch.randn(1, 5, 2, 4), torch.randn(1, 4, 2, 4)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, k, mask, op=CPUForward)
    assert not out[:, :2].any() and (lse[..., :2] == -math.inf).all()
    assert lse[..., 2:].isfinite().all()
