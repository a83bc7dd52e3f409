"""The optimizer of large weights, and their copies: what torch's fused AdamW and autocast do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.train.adamw_stand_in import weights
from tests.train.runs import last, run, same_weights
from xftrain.kernels import fused_adamw
from xftrain.kernels.adamw import AdamWSettings, AdamWTensors, adamw_, has_kernel
from xftrain.kernels.fused_adamw import FusedAdamW

BETAS = (0.9, 0.95)


def groups_of(parameters: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": parameters[:2], "weight_decay": 0.1},
        {"params": parameters[2:], "weight_decay": 0.0},
    ]


def test_it_is_torchs_with_clipping(adamw_on_cpu):
    ours, torchs = weights(), weights()
    settings = {"lr": 0.01, "betas": BETAS}
    own, other = FusedAdamW(groups_of(ours), **settings), torch.optim.AdamW(groups_of(torchs))
    other.load_state_dict(own.state_dict())
    flag = torch.zeros(())
    for step, limit in enumerate([1.0, None, 1e9, 0.1, math.inf, 1.0]):
        for one, two in zip(ours, torchs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        norm = own.clip(limit)
        expected = nn.utils.clip_grad_norm_(torchs, math.inf if limit is None else limit)
        torch.testing.assert_close(norm, expected)
        flag.fill_(step == 4)  # to be left out
        own.found_inf = other.found_inf = flag
        for optimizer in (own, other):
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
        for one, two in zip(ours, torchs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    assert own.state[ours[0]]["step"] == 5
    for parameter, twin in zip(ours, torchs, strict=True):
        for name, value in own.state[parameter].items():
            torch.testing.assert_close(value, other.state[twin][name], rtol=1e-5, atol=1e-7)


def test_a_clip_is_of_one_step(adamw_on_cpu):
    (weight, *_), twin = weights(), weights()[0]
    own = FusedAdamW([{"params": [weight]}], lr=0.01)
    other = torch.optim.AdamW([twin], lr=0.01, fused=True)
    for clips in (True, False):
        weight.grad, twin.grad = (torch.full_like(weight, 2.0 + clips) for _ in range(2))
        if clips:
            own.clip(1e-3)
            nn.utils.clip_grad_norm_([twin], 1e-3)
        own.step()
        other.step()
    torch.testing.assert_close(weight, twin)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    narrow=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_a_norm_is_of_all_gradients_whatever_their_dtype(sizes, narrow):
    grads = [
        torch.randn(size).to(torch.bfloat16 if is_narrow else torch.float32)
        for size, is_narrow in zip(sizes, narrow, strict=False)
    ]
    expected = torch.cat([grad.double() for grad in grads]).norm()
    torch.testing.assert_close(
        fused_adamw.gradient_norm(grads).double(), expected, rtol=1e-6, atol=0.0
    )


# ---- copies


# ---- a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_elements", [1, 2047, 2**19 + 5])
def test_the_kernel_is_torchs(dtype, num_elements):
    assert has_kernel(torch.device("cuda", 0))
    torch.manual_seed(0)
    on = {"device": "cuda"}
    weight = torch.randn(num_elements, **on)
    twin = weight.clone().requires_grad_()
    moments = torch.zeros(2, num_elements, **on).unbind()
    copy = torch.empty(num_elements, dtype=torch.bfloat16, **on)
    optimizer = torch.optim.AdamW([twin], 0.01, BETAS, weight_decay=0.1, fused=True)
    clip, skip, rate = torch.tensor([0.3, 0.0, 0.01], **on).unbind()
    settings = AdamWSettings(rate, clip, skip, BETAS, 1e-8, 0.1)
    for step in range(1, 6):
        grad = torch.randn(num_elements, **on).to(dtype)
        held = AdamWTensors(weight, grad, *moments, torch.tensor(float(step), **on), copy)
        adamw_(held, settings)
        twin.grad = grad.float() * clip
        optimizer.step()
        torch.testing.assert_close(weight, twin.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(copy, weight.to(torch.bfloat16))
    before = weight.clone()
    skip.fill_(1.0)
    adamw_(held, settings)
    assert torch.equal(weight, before)


LARGE = (
    *("trainer=gpu", "model.attn=sdpa", "trainer.precision=bf16-mixed", "model.dim=768"),
    *("model.num_layers=2", "model.ffn=gelu", "batch_tokens=4096", "seq=64", "max_steps=25"),
    *("optim.lr=0.002", "data.stop_at_accuracy=null"),
)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true", "bf16-true"])
@pytest.mark.parametrize("how", ["compile=false", "compile=true", "compile=cudagraphs"])
def test_a_run_on_a_gpu_learns_the_same(tmp_path, how, precision):
    words = (*LARGE, how, f"trainer.precision={precision}")
    plain = run(tmp_path / "torch", *words, "optim.impl=torch")
    ours = run(tmp_path / "auto", *words)
    for name in ("train/loss", "val/loss"):
        assert ours["metrics"][name] == pytest.approx(plain["metrics"][name], rel=0.02)
    if how != "compile=cudagraphs":  # whose memory is the pool's
        if precision == "bf16-mixed":
            assert ours["peak_memory_mib"] < plain["peak_memory_mib"]
            assert 0.85 < ours["predicted_peak_mib"] / ours["peak_memory_mib"] < 1.3


@pytest.mark.cuda
@pytest.mark.parametrize("how", ["compile=true", "compile=cudagraphs"])
def test_a_run_on_a_gpu_with_copies_goes_on_bitwise(tmp_path, how):
    words = (*LARGE, how, "schedule=constant", "deterministic=true")
    run(tmp_path / "whole", *words, "max_steps=6")
    run(tmp_path / "cut", *words, "max_steps=3")
    run(tmp_path / "cut", *words, "max_steps=6", "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
