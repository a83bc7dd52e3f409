"""The scale and the soft cap of scores, which are facts of the bias: computed or refused by all."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tests.model.attn.cells import BACKENDS, backend_named
from xftrain.benchmark.reference import output_and_grads
from xftrain.benchmark.tolerances import check_parity
from xftrain.callbacks.attention_pattern import describe
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnCase, AttnShape, Backend
from xftrain.model.attn._folding import folding_reasons
from xftrain.model.attn.auto import Auto
from xftrain.model.attn.flex import Flex
from xftrain.model.attn.sdpa import SDPA

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
M, H, G, K = 130, 4, 2, 16
SLOPES = (0.5, 0.25, 0.125, 0.0625)
SCORES = {
    "scale": {"scale": 0.6},
    "softcap": {"softcap": 2.0},
    "both": {"scale": 1.0, "softcap": 3.0},
}
FACTS = {
    "causal": AttnBias(),
    "full": AttnBias(causal=False),
    "window": AttnBias(window=20),
    "packed": AttnBias(seqlens=(37, 60, 8, 25)),
    "alibi": AttnBias(slopes=SLOPES),
    "alibi-dense": AttnBias(slopes=SLOPES, dense=True, window=20),
}


def call_of(bias: AttnBias, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AttnCall:
    return AttnCall(bias, AttnShape(1, M, H, G, K), dtype, torch.device(device))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_scores_mean(scale: float | None, softcap: float | None) -> None:
    bias = AttnBias(scale=scale, softcap=softcap)
    (got,) = bias.scores(torch.tensor([7.0], dtype=torch.float64), 16).tolist()
    want = 7.0 * (0.25 if scale is None else 0.3)
    assert got == pytest.approx(want if softcap is None else 2.0 * math.tanh(want / 2.0))
    assert call_of(bias).scale == (0.25 if scale is None else 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_each_backend_computes_them_or_refuses(
    device: str, name: str, facts: str, scores: str, dtype: torch.dtype
) -> None:
    backend = backend_named(name)
    call = call_of(replace(FACTS[facts], **SCORES[scores]), dtype, device)
    reasons = " ".join(backend.unsupported(*call))
    if call.bias.softcap is not None and name in ("sdpa", "xformers"):
        assert f"cannot cap scores, and the bias sets softcap={call.bias.softcap:g}" in reasons
        return
    if reasons:  # as without them, and not for them
        assert backend.unsupported(*call._replace(bias=FACTS[facts])) == [reasons]
        pytest.skip(reasons)
    seed = secrets.randbelow(2**31)
    verdict = check_parity(backend, call, torch.Generator().manual_seed(seed))
    assert not verdict.faults, f"{verdict.faults}, seed {seed}"


class _Forgetful(Backend):
    """Says that it takes both, and leaves one out."""

    takes_scale = takes_softcap = True

    def __init__(self, **left: float | None) -> None:
        self.left = left

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        return []

    def handle_for(self, call: AttnCall) -> AttnCall:
        return call._replace(bias=replace(call.bias, **self.left))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, handle: AttnCall) -> Tensor:
        naive = backend_named("naive")
        return naive(q, k, v, naive.prepare(*handle))

    def kernel_for(self, call: AttnCall) -> str:
        return "forgetful"


def test_a_backend_that_leaves_one_out_is_found() -> None:
    call, generator = call_of(AttnBias(**SCORES["both"])), torch.Generator().manual_seed(0)
    assert not check_parity(_Forgetful(), call, generator).faults
    for left in ({"scale": None}, {"softcap": None}):
        assert check_parity(_Forgetful(**left), call, generator).faults


class _Former(_Forgetful):
    """One that says nothing of scores."""

    takes_scale = takes_softcap = False


@pytest.mark.parametrize(
    ("backend", "scores", "said"),
    [
        (
            _Former(),
            {"scale": 0.6},
            r"by K\*\*-0.5 only, and the bias sets scale=0.6",
        ),
        (_Former(), {"softcap": 50.0}, r"cannot cap scores, and the bias sets softcap=50"),
        (SDPA(), {"softcap": 50.0}, r"model.attn cannot compute model.bias: it cannot cap scores"),
    ],
)
def test_a_backend_that_does_not_say_that_it_takes_them_is_refused(backend, scores, said) -> None:
    call = call_of(AttnBias(**scores))
    assert len(backend.unsupported(*call)) == 1
    with pytest.raises(ConfigError, match=said):  # whoever has not asked before
        backend.prepare(*call)
    assert not backend.unsupported(*call_of(AttnBias()))


def test_a_call_in_four_arguments_is_the_same_call() -> None:
    naive, call = backend_named("naive"), call_of(AttnBias(window=9))
    assert naive.unsupported(*call) == naive.unsupported_reasons(call) == []
    assert naive.kernel(*call) == naive.kernel_name(call)
    q, k, v = torch.randn(1, M, H, K), *torch.randn(2, 1, M, G, K)
    outs = [naive(q, k, v, handle) for handle in (naive.prepare(*call), naive.prepare_handle(call))]
    assert torch.equal(*outs)


def test_auto_takes_a_backend_that_caps() -> None:
    auto = Auto()
    auto.choose([AttnCase(call_of(AttnBias(softcap=5.0)), (0,))])
    assert auto.chosen is not None and auto.chosen.takes_softcap
    assert not auto.unsupported(*call_of(AttnBias(softcap=5.0, scale=1.0)))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("scores", SCORES)
def test_score_functions_of_flex_on_the_cpu(facts: str, scores: str) -> None:
    # no gradients there, but the same score functions; and whole blocks of them
    torch._dynamo.reset()  # torch 2.15 fails where flex_attention recompiles for dynamic sizes
    call = call_of(replace(FACTS[facts], **SCORES[scores]), torch.float64)
    sizes: list[int] = []

    def noted(q: Tensor, *kv: Tensor, **how: object) -> Tensor:
        sizes.append(q.shape[2])
        return flex_attention(q, *kv, **how)  # type: ignore[arg-type]

    torch.manual_seed(0)
    qkv = [torch.randn(1, M, heads, K, dtype=torch.float64) for heads in (H, G, G)]
    flex, naive = Flex(), backend_named("naive")
    out = flex(*qkv, replace(flex.prepare(*call), attend=noted))
    assert torch.allclose(out, naive(*qkv, naive.prepare(*call)), atol=1e-5)
    has_function = call.bias.softcap is not None or call.bias.slopes is not None
    assert sizes == [256 if has_function else M]


@pytest.mark.parametrize("head_dim", [20, 80])
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_features_cancel_where_the_scale_is_no_power_of_two(name: str, head_dim: int) -> None:
    # torch's backward pass on a CPU scales within the product: 3 to 4 times torch's error
    bias, shape = AttnBias(slopes=SLOPES), AttnShape(1, M, H, G, head_dim)
    for seed, more in ((0, {}), (1, {"scale": 0.1})):
        call = AttnCall(replace(bias, **more), shape, torch.float32, CPU)
        verdict = check_parity(backend_named(name), call, torch.Generator().manual_seed(seed))
        assert not verdict.faults


@pytest.mark.parametrize("name", ["naive", "sdpa", "xformers"])
def test_a_scale_of_the_default_is_the_default(name: str) -> None:
    backend = backend_named(name)
    torch.manual_seed(0)
    qkv = tuple(torch.randn(1, M, heads, K) for heads in (H, G, G))
    made = [
        output_and_grads(
            lambda *x, bias=bias: backend(*x, backend.prepare(*call_of(bias))),
            qkv,
            torch.ones(1, M, H, K),
        )
        for bias in (AttnBias(slopes=SLOPES), AttnBias(slopes=SLOPES, scale=K**-0.5))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_features_are_as_large_as_the_scale_says() -> None:
    # they are divided by it: a small one makes them too large for float16
    small = AttnBias(slopes=(1.0,), scale=1e-3)
    assert "largest number" in folding_reasons(small, 4096, torch.float16, K)[0]
    assert not folding_reasons(AttnBias(slopes=(1.0,)), 4096, torch.float16, K)


def test_they_are_facts_among_the_others() -> None:
    keys = {AttnBias(**more).key for more in ({}, *SCORES.values(), {"scale": 2.0})}
    assert len(keys) == 5
    both = AttnBias(window=9, **SCORES["both"])
    assert both.simplified(9).softcap == 3.0 and both.simplified(9).scale == 1.0
    assert "scores scaled by 1, scores capped at 3" in describe(both)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.5"])
@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_they_are_finite_numbers_above_zero(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a finite number above 0"):
        AttnBias(**{name: value})  # type: ignore[arg-type]
