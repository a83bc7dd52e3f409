"""Products by a chosen algorithm are the products that torch makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.matmul_inputs import D, H, N, inputs
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.kernels import cublaslt, matmul
from xftrain.kernels.gated import gated_gradient, gated_linear, has_kernel
from xftrain.kernels.linear_functions import (
    autotuned_gated_linear,
    autotuned_gelu_mlp,
    autotuned_linear,
)
from xftrain.kernels.operators import MATMULS
from xftrain.utils.compilation import configure_compilation, reset_compilation


def mlp(x, up, down):
    return F.gelu(x @ up.t(), approximate="tanh") @ down.t()


def gated(h, down):
    gate, value = h.chunk(2, dim=-1)
    return (F.silu(gate) * value) @ down.t()


def gated_gelu(h, down):
    gate, value = h.chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * value) @ down.t()


def by_silu(h, down):
    return autotuned_gated_linear(h, down, "silu")


def by_gelu(h, down):
    return autotuned_gated_linear(h, down, "gelu")


def gradients(function, *inputs):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out))]


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_and_their_gradients_are_torchs(compiled):
    how = torch.compile if compiled else lambda function: function
    x, up, down = inputs()
    h = torch.cat([x @ up.t(), x @ up.t().flip(0)], dim=-1)
    pairs = [
        (gradients(how(autotuned_linear), x, up), gradients(F.linear, x, up)),
        (gradients(how(autotuned_gelu_mlp), x, up, down), gradients(mlp, x, up, down)),
        (gradients(how(by_silu), h, down), gradients(gated, h, down)),
        (gradients(how(by_gelu), h, down), gradients(gated_gelu, h, down)),
    ]
    for ours, expected in pairs:
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_the_operators_are_what_torch_compile_takes_them_for():
    x, up, down = (tensor.flatten(0, -2) for tensor in inputs())
    h = x @ up.t()
    for op, args in (
        (matmul.linear, (x, up)),
        (matmul.linear_input_gradient, (h, up)),
        (matmul.linear_gelu, (x, up)),
        (matmul.gelu_linear, (F.gelu(h, approximate="tanh"), h, down)),
        (matmul.gelu_linear_gradient, (x, down, h)),
        (gated_linear, (torch.cat([h, h.flip(1)], dim=-1), down, "silu")),
        (gated_gradient, (h, torch.cat([h, h.flip(1)], dim=-1), "gelu")),
    ):
        torch.library.opcheck(op, args)


def test_their_operations_are_counted():
    x, up, down = (tensor.flatten(0, -2) for tensor in inputs())
    with FlopCounterMode(display=False) as counter:
        gradients(autotuned_gelu_mlp, x, up, down)
    assert counter.get_total_flops() == 3 * 2 * (2 * N * D * H)  # forward, and twice backward
    with FlopCounterMode(display=False) as counter:
        gradients(by_silu, torch.randn(N, 2 * H), down)
    assert counter.get_total_flops() == 3 * (2 * N * D * H)


class Half(nn.Module):
    """The half of a block that has most products."""

    def __init__(self):
        super().__init__()
        sizes = {"qkv": (3 * D, D), "out": (D, D), "up": (4 * D, D), "down": (D, 4 * D)}
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size)))

    def forward(self, x):
        q, k, v = autotuned_linear(F.layer_norm(x, (D,)), self.qkv)[:, None].split(D, -1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        x = x + autotuned_linear(y, self.out)
        return x + autotuned_gelu_mlp(F.layer_norm(x, (D,)), self.up, self.down)


def test_a_budget_drops_first_what_saves_most_for_its_price():
    wide, kept = (2 * N, 4 * D), {}  # gelu(h) and h
    for budget in (1.0, 0.5, 0.1):
        torch._dynamo.reset()
        configure_compilation(budget, MATMULS)
        try:
            out = torch.compile(Half())(torch.randn(2, N, D, requires_grad=True))
        finally:
            reset_compilation()
        kept[budget] = [tuple(tensor.shape) for tensor in out.grad_fn.saved_tensors]
    attention = (2, 1, N, D)
    assert [kept[budget].count(wide) for budget in kept] == [2, 0, 0]
    assert [kept[budget].count(attention) >= 3 for budget in kept] == [True, True, False]


LARGE = (8192, 1024, 4096)


@pytest.mark.cuda
@pytest.mark.parametrize("gate", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 1024, 5632])
def test_the_kernel_of_a_gate_is_as_exact_as_its_dtype(dtype, gate, width):
    assert has_kernel(torch.device("cuda"))
    torch.manual_seed(0)
    h = (torch.randn(33, 2 * width, device="cuda") * 3).to(dtype)
    grad, down = torch.randn(33, width, device="cuda").to(dtype), torch.eye(width, device="cuda")
    want = gated_gradient(grad.double().cpu(), h.double().cpu(), gate)
    got = [*gated_gradient(grad, h, gate), gated_linear(h, down.to(dtype), gate)]
    for one, other in zip(got, [*want, want[1]], strict=True):
        error = torch.finfo(dtype).eps
        torch.testing.assert_close(one.double().cpu(), other, rtol=error, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_they_are_as_exact_as_torchs(dtype):
    exact = inputs(torch.float64, "cuda", LARGE)
    halves = [tensor.to(dtype) for tensor in exact]
    exact = [tensor.double() for tensor in halves]
    tuner = matmul.Autotuner()
    with matmul.autotuner_set(tuner):
        ours = gradients(autotuned_gelu_mlp, *halves)
        ours += gradients(autotuned_linear, *halves[:2])
    # up, down and their gradients; the linear layer's input gradient is that of up
    assert len(tuner.choices) == 5, "each product is measured once"
    torchs = gradients(mlp, *halves) + gradients(F.linear, *halves[:2])
    expected = gradients(mlp, *exact) + gradients(F.linear, *exact[:2])
    for one, other, right in zip(ours, torchs, expected, strict=True):
        error = (one.double() - right).norm() / right.norm()
        assert error <= 1.05 * (other.double() - right).norm() / right.norm()


@pytest.mark.cuda
def test_every_algorithm_that_is_proposed_is_right():
    made = inputs(torch.float32, "cuda", LARGE)
    x, up, down = (tensor.to(torch.bfloat16).flatten(0, -2) for tensor in made)
    h = x @ up.t()
    grad = torch.randn_like(x)
    epilogue = cublaslt.Epilogue
    cases = [
        (epilogue.NONE, x, up.t(), None, h),
        (epilogue.GELU, x, up.t(), torch.empty_like(h), F.gelu(h, approximate="tanh")),
        (
            epilogue.GELU_GRADIENT,
            grad,
            down,
            h,
            torch.ops.aten.gelu_backward(grad @ down, h, approximate="tanh"),
        ),
    ]
    for kind, a, b, second, expected in cases:
        plan = cublaslt.Plan(a, b, kind)
        assert len(plan.proposals) > 1
        for index in range(len(plan.proposals)):
            out = torch.full_like(expected, torch.nan)
            plan.launch(index, a, b, out, second)
            torch.testing.assert_close(out, expected, rtol=0.03, atol=0.03)
        if kind == epilogue.GELU:
            torch.testing.assert_close(second, h, rtol=0.01, atol=0.01)


@pytest.mark.cuda
@pytest.mark.parametrize("how", ["compile=false", "compile=true", "compile=cudagraphs"])
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_a_run_that_chooses_learns_the_same(tmp_path, how, ffn):
    words = ("trainer=gpu", "model.attn=sdpa", "trainer.precision=bf16-mixed", "model.dim=512")
    large = ("model.num_layers=2", f"model.ffn={ffn}", "batch_tokens=16384", "seq=128")
    longer = ("max_steps=25", "optim.lr=0.002", "data.stop_at_accuracy=null", how)
    ours = run(tmp_path / "auto", *words, *large, *longer)["metrics"]
    (names,) = read_checkpoint(last(tmp_path / "auto"))["callbacks"]["Choices"]["matmul"]
    assert len(names) >= (6 if ffn == "gelu" else 5)
    torchs = run(tmp_path / "torch", *words, *large, *longer, "matmul=torch")["metrics"]
    assert ours["train/loss"] == pytest.approx(torchs["train/loss"], rel=0.02)
    assert ours["train/grad_norm"] == pytest.approx(torchs["train/grad_norm"], rel=0.2)
