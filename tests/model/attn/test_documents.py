"""Documents, additive tensors and queries that see nothing mean the same in every backend."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from tests.model.attn.cells import backend_named
from tests.models import gpt, random_tokens
from xftrain.benchmark.reference import output_and_grads
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnShape

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
BACKENDS = ["naive", "sdpa", "xformers", "flex"]


def results(
    name: str, bias: AttnBias, shape: AttnShape, device: str
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Output and gradients of a backend, and what they are of; skips where it refuses."""
    backend, place = backend_named(name), torch.device(device)
    if reasons := backend.unsupported(bias, shape, torch.float32, place):
        pytest.skip(reasons[0])
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.H, shape.G, shape.G, shape.H)
    q, k, v, grad = (
        torch.randn(shape.B, shape.M, heads, shape.K, generator=generator).to(device)
        for heads in sizes
    )
    handle = backend.prepare(bias, shape, torch.float32, place)
    return output_and_grads(lambda *qkv: backend(*qkv, handle), (q, k, v), grad), (q, k, v, grad)


def meant(bias: AttnBias, shape: AttnShape, *qkv: Tensor) -> Tensor:
    """The specification, in float64: a query that sees nothing gets 0."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    k, v = (x.repeat_interleave(shape.H // shape.G, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * shape.scale + bias.materialize(shape.M, q.device)
    empty = torch.isneginf(scores).all(dim=-1, keepdim=True)
    probs = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return (probs @ v).transpose(1, 2)


def check(name: str, bias: AttnBias, shape: AttnShape, device: str) -> list[Tensor]:
    """The results of a backend, equal to what is meant."""
    mine, (q, k, v, grad) = results(name, bias, shape, device)
    wide = tuple(x.double() for x in (q, k, v))
    right = output_and_grads(lambda *qkv: meant(bias, shape, *qkv), wide, grad.double())
    for value, truth in zip(mine, right, strict=True):
        assert (value - truth).abs().max() < (2e-5 if device == "cpu" else 2e-2)
    return mine


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_query_that_sees_nothing_gets_nothing_and_gives_nothing(name: str, device: str) -> None:
    additive = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(1)).to(device)
    additive[0, 5] = -math.inf  # of one head
    additive[:, 7] = -math.inf
    shape = AttnShape(1, 12, 2, 1, 16)
    out, dq, *_ = check(name, AttnBias(additive_HMM=additive), shape, device)
    for result in (out, dq):
        assert not result[0, 7].any() and not result[0, 5, 0].any() and result[0, 5, 1].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
def test_an_additive_tensor_is_each_documents_own(name: str, device: str, causal: bool) -> None:
    # documents of one length shared the first one's part of it
    additive = torch.randn(1, 15, 15, generator=torch.Generator().manual_seed(1)).to(device)
    bias = AttnBias(causal=causal, seqlens=(5, 5, 5), additive_HMM=additive)
    check(name, bias, AttnShape(1, 15, 2, 2, 16), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("slopes", [(0.5, 0.25), (-0.5, 3.0)])
def test_slopes_are_added_once_beside_an_additive_tensor(
    name: str, device: str, dense: bool, slopes: tuple[float, ...]
) -> None:
    # xformers had them in the features and in the tensor
    additive = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(1)).to(device)
    bias = AttnBias(slopes=slopes, window=6, dense=dense, additive_HMM=additive)
    check(name, bias, AttnShape(1, 20, 2, 2, 16), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["naive", "sdpa", "xformers"])  # flex reads blocks of 128
@pytest.mark.parametrize(
    "bias",
    [AttnBias(seqlens=(7, 20, 5)), AttnBias(causal=False, seqlens=(7, 20, 5))],
    ids=["causal", "full"],
)
def test_a_nan_stays_in_its_document(name: str, device: str, bias: AttnBias) -> None:
    # 0 x NaN is NaN: the product of probabilities and values must leave other documents out
    backend, shape = backend_named(name), AttnShape(1, 32, 2, 2, 16)
    handle = backend.prepare(bias, shape, torch.float32, torch.device(device))
    clean = [torch.randn(1, 32, 2, 16, device=device) for _ in range(4)]
    poisoned = [x.clone() for x in clean]
    for x in poisoned:
        x[:, 7:27] = math.nan
    others = [*range(7), *range(27, 32)]
    wanted, found = (
        output_and_grads(lambda *qkv: backend(*qkv, handle), (q, k, v), grad)
        for q, k, v, grad in (clean, poisoned)
    )
    for right, mine in zip(wanted, found, strict=True):
        assert torch.equal(mine[:, others], right[:, others])


@pytest.mark.parametrize("pos", ["none", "learned", "rope"])
@pytest.mark.parametrize("attn", ["naive", "sdpa", "xformers", "auto"])
@pytest.mark.parametrize(
    ("rows", "seqlens", "said"),
    [
        (1, (6, 6), "sum of 12 for 1 x 10 tokens"),
        (1, (6, 3), "sum of 9"),
        (1, (), "sum of 0"),
        (1, (5, 0, 5), "at least 1, got 0"),
        (1, (-3, 13), "at least 1, got -3"),
        (1, (4.0, 6.0), "integers of at least 1, got 4.0"),
        (2, (4, 6), "for 2 x 10 tokens"),
        (2, (10, 10), "for 2 x 10 tokens"),
    ],
)
def test_documents_that_do_not_fill_the_row_are_refused(
    attn: str, pos: str, rows: int, seqlens: tuple[int, ...], said: str
) -> None:
    # longer ones were computed without a word, an empty one ended the process
    model = gpt(attn=attn, pos=pos)
    with pytest.raises(ConfigError, match=said):
        model(random_tokens(rows, 10), seqlens=seqlens)


@pytest.mark.parametrize("shape", [(1, 0), (0, 4)])
def test_no_tokens_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        gpt()(random_tokens(*shape))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (AttnBias(slopes=(0.5,)), "one for each of the 4 query heads, got 1"),
        (AttnBias(seqlens=(3, 4)), "sum of 7 for 1 x 8 tokens"),
        (AttnBias(seqlens=(8, 0)), "at least 1, got 0"),
        (AttnBias(additive_HMM=torch.zeros(1, 9, 9)), r"of \[4 or 1, 8, 8\], got \[1, 9, 9\]"),
        (AttnBias(additive_HMM=torch.zeros(2, 8, 8)), r"of \[4 or 1, 8, 8\], got \[2, 8, 8\]"),
        (AttnBias(additive_HMM=torch.zeros(1, 1, 1)), r"of \[4 or 1, 8, 8\], got \[1, 1, 1\]"),
    ],
)
def test_a_bias_of_another_size_is_refused(name: str, bias: AttnBias, said: str) -> None:
    shape, place = AttnShape(1, 8, 4, 2, 16), torch.device("cpu")
    backend = backend_named(name)
    with pytest.raises(ConfigError, match=said):
        backend.prepare(bias, shape, torch.float32, place)
    (reason,) = backend.unsupported(bias, shape, torch.float32, place)
    assert re.search(said, reason)
