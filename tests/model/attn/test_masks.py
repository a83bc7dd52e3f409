"""Mask tensors on a GPU: kept from cuDNN, from too many rows, and from a break of compiled code."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.model.attn.cells import backend_named
from tests.models import gpt, random_tokens
from xftrain.benchmark.reference import exact, output_and_grads, relative_error
from xftrain.generation.generate import generate
from xftrain.interfaces import AttnBias, AttnShape, Backend
from xftrain.model.attn import _dense, sdpa
from xftrain.model.attn._dense import mask_reasons
from xftrain.model.attn.sdpa import SDPA
from xftrain.model.backends import all_backends

CUDA = torch.device("cuda")
MASKED = {
    "window": AttnBias(window=128),
    "dense": AttnBias(dense=True),
    "alibi": AttnBias(slopes=(0.5,) * 4, dense=True),
    "folded": AttnBias(slopes=(0.5,) * 4, window=128),
    "packed": AttnBias(seqlens=(64, 640), window=60),
}


def below_zero(num_positions: int, heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and a gradient whose scores are all about -120, which is what cuDNN fails at."""
    generator = torch.Generator().manual_seed(0)
    sizes = (4, heads, heads, 4)
    q, k, v, grad = (torch.randn(1, num_positions, n, head_dim, generator=generator) for n in sizes)
    q, k = q * 0.1, k * 0.1
    q[..., 0], k[..., 0] = 1.0, -120 * head_dim**0.5
    return [x.to(CUDA, dtype) for x in (q, k, v, grad)]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_positions", "head_dim"), [(704, 64), (640, 64), (704, 128)])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("bias", MASKED.values(), ids=MASKED)
def test_gradients_with_a_mask_are_right_on_a_gpu(bias, heads, num_positions, head_dim, dtype):
    # dq was NaN at 704 positions, which leave 64 by 128 (pytorch#196678)
    shape = AttnShape(1, num_positions, 4, heads, head_dim)
    if bias.seqlens is not None:
        bias = AttnBias(seqlens=(64, num_positions - 64), window=60)
    *qkv, grad = below_zero(num_positions, heads, head_dim, dtype)
    backend = SDPA()
    assert not backend.unsupported(bias, shape, dtype, CUDA)
    kernel = backend.kernel(bias, shape, dtype, CUDA)
    assert kernel.startswith("sdpa-efficient") and "mask tensor" in kernel
    handle = backend.prepare(bias, shape, dtype, CUDA)
    mine = output_and_grads(lambda q, k, v: backend(q, k, v, handle), tuple(qkv), grad)
    wide = tuple(x.double() for x in qkv)
    right = output_and_grads(lambda q, k, v: exact(q, k, v, bias), wide, grad.double())
    assert all(bool(x.isfinite().all()) for x in mine)
    for name, value, truth in zip("out dq dk dv".split(), mine, right, strict=True):
        # the first of k's features is large, and cancels in dq but for rounding
        first = 1 if name == "dq" else 0
        assert relative_error(value[..., first:], truth[..., first:]) < 0.05, name


@pytest.mark.cuda
def test_the_kernel_that_is_named_is_the_one_that_runs() -> None:
    shape = AttnShape(1, 704, 4, 2, 64)
    for name, bias in (MASKED | {"causal": AttnBias()}).items():
        *qkv, _ = below_zero(704, 2, 64, torch.bfloat16)
        handle = SDPA().prepare(bias, shape, torch.bfloat16, CUDA)
        with torch.profiler.profile(acc_events=True) as profile:
            SDPA()(*qkv, handle)
        ran = {event.key for event in profile.key_averages()}
        named = SDPA().kernel(bias, shape, torch.bfloat16, CUDA)
        kind = named.removeprefix("sdpa-").split(" ")[0]
        assert any(key == f"aten::_scaled_dot_product_{kind}_attention" for key in ran), (name, ran)


@pytest.mark.cuda
def test_a_gpu_samples_with_a_mask_without_cudnn() -> None:
    model = gpt(bias="window", pos="rope", heads="gqa", attn="sdpa").cuda()
    with torch.autocast("cuda", torch.bfloat16), torch.profiler.profile(acc_events=True) as profile:
        generate(model, random_tokens(1, 64).cuda(), 2, vocab_size=64)
    assert not [event.key for event in profile.key_averages() if "cudnn_attention" in event.key]


def without_cudnn(device: torch.device) -> AbstractContextManager[None]:
    """What `masked_kernels` is on a GPU."""
    return sdpa_kernel(_dense._MASKED_KERNELS)


def test_the_kernels_of_masks_are_all_but_cudnn() -> None:
    assert SDPBackend.CUDNN_ATTENTION not in _dense._MASKED_KERNELS
    with _dense.masked_kernels(CUDA):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with _dense.masked_kernels(torch.device("cpu")):  # where no kernel has to be kept away
        assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("bias", "is_masked"), [(AttnBias(window=5), True), (AttnBias(), False)])
def test_a_kernel_is_named_as_it_is_chosen_with_a_mask_and_without(monkeypatch, bias, is_masked):
    entered = []

    def noted(device: torch.device) -> AbstractContextManager[None]:
        entered.append(device)
        return without_cudnn(device)

    monkeypatch.setattr(sdpa, "masked_kernels", noted)
    cpu = torch.device("cpu")
    SDPA().kernel(bias, AttnShape(2, 40, 4, 2, 16), torch.float32, cpu)
    assert entered == [cpu] * is_masked


@pytest.mark.parametrize("backend", all_backends(), ids=lambda backend: backend.name)
def test_a_backend_is_asked_for_both_passes_unless_one_is_enough(backend: Backend) -> None:
    # a training is refused where there is no gradient, also by callers that do not say so
    asked = inspect.signature(backend.unsupported).parameters["needs_grad"]
    assert asked.default is True


@pytest.mark.parametrize("bias", [AttnBias(window=5), AttnBias(dense=True), AttnBias()])
def test_choosing_a_kernel_breaks_no_graph_and_is_undone(monkeypatch, bias: AttnBias) -> None:
    entered = []

    def noted(device: torch.device) -> AbstractContextManager[None]:
        entered.append(1)
        return without_cudnn(device)

    monkeypatch.setattr(sdpa, "masked_kernels", noted)
    shape = AttnShape(2, 40, 4, 2, 16)
    qkv = [torch.randn(2, 40, heads, 16, requires_grad=True) for heads in (4, 2, 2)]
    backend = SDPA()
    handle = backend.prepare(bias, shape, torch.float32, torch.device("cpu"))
    want = backend(*qkv, handle)
    assert bool(entered) == handle.is_masked
    monkeypatch.setattr(sdpa, "masked_kernels", without_cudnn)

    def attend(*qkvh: Any) -> Tensor:
        return backend(*qkvh) * 1.0

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*qkv, handle), want)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_a_mask_of_too_many_rows_is_refused(monkeypatch, name: str) -> None:
    # past 2^32 numbers other rows' masks were read, without a word (pytorch#187227)
    backend, shape = backend_named(name), AttnShape(1, 46337, 4, 4, 64)
    bias = AttnBias(dense=True)
    assert "in 32 bits" in " ".join(backend.unsupported(bias, shape, torch.bfloat16, CUDA))
    packed = AttnBias(window=9, seqlens=(40000, 6337))
    assert name != "sdpa" or not backend.unsupported(packed, shape, torch.bfloat16, CUDA)
    assert not mask_reasons(46336, CUDA) and not mask_reasons(10**6, torch.device("cpu"))


def test_flex_counts_a_tensor_that_it_reads_in_32_bits(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    flex, half = backend_named("flex"), torch.bfloat16
    alibi = AttnBias(slopes=(0.5,) * 4, dense=True)
    fits, too_long = (AttnShape(1, n, 4, 4, 64) for n in (23168, 23169))
    assert not flex.unsupported(alibi, fits, half, CUDA)  # 4 x 23,168^2 is below 2^31
    assert "in 32 bits" in flex.unsupported(alibi, too_long, half, CUDA)[0]
    assert not flex.unsupported(AttnBias(dense=True), too_long, half, CUDA)  # one for all heads
    assert not flex.unsupported(AttnBias(slopes=(0.5,) * 4), too_long, half, CUDA)
