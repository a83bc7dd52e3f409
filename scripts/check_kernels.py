"""Checks whether public bug reports of silently wrong kernels affect this package on this GPU.

Each case runs a backend, a loss or a kernel of this package under the conditions of a bug report
about torch, cuDNN, xFormers, FlashAttention or Triton, and compares the output and the gradients
with a float64 reference. The script prints one table in Markdown, and exits with 1 if a result is
wrong. A refusal by a backend, with its reason, does not count as wrong. Without a GPU, all cases
are skipped. A case that may leave the GPU unusable for its process runs in a process of its own;
once the GPU is unusable, the remaining cases do too.

    python scripts/check_kernels.py [PATTERN]  # cases whose report or description has the pattern
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xftrain
from xftrain.benchmark.reference import RESULTS, output_and_grads, relative_error
from xftrain.config import registry
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, Loss
from xftrain.kernels.prepend_features import prepend_features
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.cases import Case, Verdict, try_all  # noqa: E402

CUDA = torch.device("cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LIMIT = {BF16: 0.03, FP16: 5e-3, FP32: 5e-3}  # maximum relative error; float32 matmuls use TF32
ROWS = 1024  # number of rows that a float64 reference processes at a time


def reference(bias: AttnBias, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Returns output, dq, dk and dv in float64, from `ROWS` rows of scores at a time."""
    assert bias.scale is None and bias.softcap is None, "the reference does not implement these"
    q, k, v, grad = (x.double() for x in (q, k, v, grad))
    out, dq, dk, dv = (torch.zeros_like(x) for x in (q, q, k, v))
    B, M, H, K = q.shape
    j = torch.arange(M, device=q.device)
    lengths = torch.tensor(bias.seqlens or (M,), device=q.device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=q.device), lengths)
    for b in range(B):
        for h in range(H):
            g = h * k.shape[2] // H
            for start in range(0, M, ROWS):
                i = slice(start, start + ROWS)
                ahead = j[i, None] - j
                hidden = document[i, None] != document
                if bias.causal:
                    hidden |= ahead < 0
                if bias.window is not None:
                    hidden |= ahead >= bias.window
                scores = q[b, i, h] @ k[b, :, g].T * K**-0.5
                if bias.slopes is not None:
                    scores -= bias.slopes[h] * ahead
                p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
                out[b, i, h] = p @ v[b, :, g]
                dp = grad[b, i, h] @ v[b, :, g].T
                ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * K**-0.5
                dq[b, i, h] = ds @ k[b, :, g]
                dk[b, :, g] += ds.T @ q[b, i, h]
                dv[b, :, g] += p.T @ grad[b, i, h]
    return [out, dq, dk, dv]


def compare(
    dtype: torch.dtype, results: list[Tensor], expected: list[Tensor], skipped_features: int = 0
) -> str:
    """Returns `right` with the largest error, or `WRONG` with the faults.

    The first `skipped_features` features of dq are not compared.
    """
    faults, worst = [], 0.0
    for name, value, truth in zip(RESULTS, results, expected, strict=False):
        if not value.isfinite().all():
            faults.append(f"{name} is not finite")
            continue
        if name == "dq":
            value, truth = value[..., skipped_features:], truth[..., skipped_features:]
        error = relative_error(value, truth)
        worst = max(worst, error)
        if not error < LIMIT[dtype]:
            faults.append(f"error of {name} {error:.1e}")
    return f"WRONG: {', '.join(faults)}" if faults else f"right ({worst:.1e})"


def attention(
    name: str,
    bias: AttnBias,
    shape: AttnShape,
    dtype: torch.dtype = BF16,
    *,
    far_below_zero: bool = False,
    expanded_grad: bool = False,
    last_row: bool = False,
) -> Verdict:
    """Checks a backend on q, k and v that are views of one tensor, as in a model.

    With `far_below_zero` all scores are about -120; with `expanded_grad` the output's gradient has
    strides of 0, as that of a sum has; with `last_row` only the last row of the batch is compared.
    """
    backend = registry.load_class("model/attn", name)()
    call = AttnCall(bias, shape, dtype, CUDA)
    if reasons := backend.unsupported(*call):
        return "refused", reasons[0]
    heads = (shape.H, shape.G, shape.G)
    qkv = torch.randn(shape.B, shape.M, sum(heads), shape.K, device=CUDA, dtype=dtype)
    q, k, v = qkv.split(heads, dim=2)
    if far_below_zero:
        q.mul_(0.1)[..., 0] = 1.0
        k.mul_(0.1)[..., 0] = -120 * shape.K**0.5
    grad = torch.randn(q.shape, device=CUDA, dtype=dtype)
    if expanded_grad:
        grad = torch.ones((), device=CUDA, dtype=dtype).expand(q.shape)
    handle = backend.prepare(*call)
    results = output_and_grads(lambda *x: backend(*x, handle), (q, k, v), grad)
    inputs = [q, k, v, grad]
    if last_row:
        results, inputs = ([x[-1:] for x in group] for group in (results, inputs))
    kernel = backend.kernel(*call)
    expected = reference(bias, *inputs)
    return kernel, compare(dtype, results, expected, skipped_features=int(far_below_zero))


def loss_of_many_logits(loss: Loss, num_tokens: int, vocab_size: int) -> Verdict:
    """Checks a loss, with more than 2^31 logits, against a float64 reference computed in chunks."""
    x = torch.randn(num_tokens, 64, device=CUDA, dtype=BF16)
    weight = torch.randn(vocab_size, 64, device=CUDA, dtype=BF16) / 10  # keeps logits small
    labels = torch.randint(vocab_size, (num_tokens,), device=CUDA)

    results = output_and_grads(
        lambda x, weight: loss(x, weight, labels, with_accuracy=False).loss,
        (x, weight),
        torch.ones((), device=CUDA),
    )
    expected = [torch.zeros((), device=CUDA).double(), x.double() * 0, weight.double() * 0]
    for rows in torch.arange(num_tokens, device=CUDA).split(ROWS):
        logits = x[rows].double() @ weight.double().T
        label = labels[rows, None]
        expected[0] += (logits.logsumexp(-1) - logits.gather(1, label)[:, 0]).sum()
        grad = logits.softmax(-1).scatter_add_(1, label, -torch.ones_like(label).double())
        expected[1][rows] = grad @ weight.double()
        expected[2] += grad.T @ x[rows].double()
    return type(loss).__name__.lower(), compare(BF16, results, expected)


def prepend_to_large_tensor() -> Verdict:
    """Checks `prepend_features` on a tensor of more than 2^31 elements."""
    x = torch.randn(2, 524288, 32, 64, device=CUDA, dtype=BF16)
    features = torch.randn(1, 1, 32, 16, device=CUDA, dtype=BF16)
    joined = prepend_features(x, features)
    same = torch.equal(joined[..., 16:], x) and bool((joined[..., :16] == features).all())
    return "prepend_features_", "right (equal)" if same else "WRONG"


def compiled_block(*overrides: str, dtype: torch.dtype | None = None) -> Verdict:
    """Checks a compiled model's gradients against float64.

    Their error may be at most three times that of the same model without compilation.
    """
    small = ("model.dim=192", "model.num_layers=2", "model.num_heads=4", "model.attn=sdpa")
    tokens = torch.randint(64, (96, 8), device=CUDA)

    def gradients(*, exact: bool, compiles: bool) -> list[Tensor]:
        model = xftrain.build_model(xftrain.compose(*small, *overrides)).to(CUDA)
        if compiles:
            model.compile_blocks(packed=False)
        model = model.double() if exact else model
        with torch.autocast(CUDA.type, dtype, enabled=dtype is not None and not exact):
            loss = model(tokens).double().sin().sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    expected, uncompiled, compiled = (
        gradients(exact=exact, compiles=compiles)
        for exact, compiles in ((True, False), (False, False), (False, True))
    )
    errors = [
        (relative_error(x, truth), relative_error(eager, truth))
        for x, eager, truth in zip(compiled, uncompiled, expected, strict=True)
    ]
    is_right = all(error < 3 * eager + 1e-4 for error, eager in errors)
    worst = max(error for error, _ in errors)
    return "inductor", f"{'right' if is_right else 'WRONG:'} ({worst:.1e})"


def dropout_with_activation_budget(budget: float) -> Verdict:
    """Compares the gradient's norm with a finite difference of losses along the gradient.

    Everything is float64, and each forward pass draws the same dropout mask.
    """
    overrides = ("model.dropout=0.3", "model.ffn=gelu", f"model.activation_budget={budget}")
    cfg = xftrain.compose("model.attn=sdpa", "model.num_layers=1", "compile=true", *overrides)
    model = xftrain.build_model(cfg).double().train().to(CUDA)
    model.compile_blocks(packed=False)
    tokens = torch.randint(64, (4, 64), device=CUDA)

    def loss() -> Tensor:
        torch.manual_seed(7)
        return model(tokens).sin().sum()

    loss().backward()
    pairs = [(p, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    norm = float(sum(g.square().sum() for _, g in pairs)) ** 0.5
    losses = []
    for step in (1e-6 / norm, -2e-6 / norm):
        with torch.no_grad():
            for p, g in pairs:
                p += step * g
            losses.append(float(loss()))
    error = abs((losses[0] - losses[1]) / 2e-6 / norm - 1)
    return "inductor", f"right ({error:.1e})" if error < 1e-4 else f"WRONG: off by {error:.0%}"


def cases() -> Iterator[Case]:
    """Yields a case for each bug report and each configuration that it may affect."""

    def attend(
        report: str, text: str, *args: Any, in_own_process: bool = False, **kwargs: Any
    ) -> Case:
        run = partial(attention, *args, **kwargs)
        return Case(report, f"{args[0]}: {text}", run, in_own_process)

    causal, dense, four = AttnBias(), AttnBias(dense=True), (0.5, 0.25, 0.125, 0.0625)
    row, grouped = AttnShape(1, 704, 4, 4, 64), AttnShape(1, 704, 4, 2, 64)
    for label, bias in (("window", AttnBias(window=128)), ("dense", dense)):
        for dtype in (BF16, FP16):
            text = f"{label}, 704 positions, scores of -120, {dtype}"
            yield attend("pytorch#196678", text, "sdpa", bias, row, dtype, far_below_zero=True)
    yield attend("pytorch#196678", "causal", "sdpa", causal, row, far_below_zero=True)
    long = AttnShape(1, 46336, 1, 1, 64)
    for name in ("sdpa", "xformers"):
        yield attend("pytorch#150054", "dense, 46,336 rows", name, dense, long)
        yield attend("pytorch#187227", "66,000 rows", name, dense, replace(long, M=66000))
    for name in ("sdpa", "xformers", "flex"):
        yield attend("pytorch#162588", "causal, 66,000 rows", name, causal, replace(long, M=66000))
    for slopes in (four, (1.0, 2.0, -0.5, -1.0)):
        for seqlens in (None, (900, 125)):
            bias = AttnBias(slopes=slopes, seqlens=seqlens)
            text = f"slopes {slopes}, documents {seqlens}, 1,025 positions"
            yield attend("pytorch#153799", text, "flex", bias, replace(row, M=1025))
    yield attend("pytorch#158212", "window", "flex", AttnBias(window=128), replace(row, M=1000))
    yield attend("pytorch#146377", "views, grouped", "flex", causal, replace(grouped, M=1000))
    yield attend("flash-attention#1133", "window M - 1", "xformers", AttnBias(window=703), row)
    bias = AttnBias(seqlens=(1, 76, 33, 594), window=33)
    yield attend("flash-attention#443", "packed window", "xformers", bias, grouped)
    for name in ("sdpa", "xformers", "flex"):
        text = "gradient of a sum"
        yield attend("flash-attention#355", text, name, causal, grouped, expanded_grad=True)
    for name in ("sdpa", "xformers"):
        short = AttnShape(66000, 16, 2, 2, 32)
        yield attend("pytorch#142228", "66,000 rows of 16", name, causal, short, last_row=True)
        mqa = AttnShape(1, 129, 4, 1, 64)
        yield attend("pytorch#191937", "one K/V head, 129 keys", name, dense, mqa)
    for length in (65, 127, 200, 1001):
        shape = AttnShape(2, length, 4, 4, 64)
        text = f"full, {length} positions"
        yield attend("cudnn-frontend#160", text, "sdpa", AttnBias(causal=False), shape)
    yield attend("pytorch#128348", "q, k wider than v", "sdpa", AttnBias(slopes=four), row)
    large = AttnShape(520, 1024, 64, 64, 64)
    for name in ("sdpa", "xformers", "flex"):
        text = "more than 2^31 elements"
        options = {"last_row": True, "in_own_process": True}
        yield attend("flash-linear-attention#1080", text, name, causal, large, **options)
    scores, text = AttnShape(2049, 1024, 1, 1, 64), "more than 2^31 scores"
    yield attend("onnxruntime#32299", text, "naive", causal, scores, FP32, last_row=True)
    for loss in (Full(), Fused(chunk_tokens=65536)):
        run = partial(loss_of_many_logits, loss, 44000, 50304)
        yield Case("pytorch#111484", f"loss={type(loss).__name__.lower()}, 2.2e9 logits", run)
    yield Case(
        "flash-linear-attention#1080", "prepend_features, 2.1e9 elements", prepend_to_large_tensor
    )
    for norm in ("layernorm", "rmsnorm"):
        run = partial(compiled_block, f"model.norm={norm}", "model.linear_bias=true")
        yield Case("pytorch#193061", f"compiled, {norm}, float32", run)
        yield Case("pytorch#191433", f"compiled, {norm}, bf16", partial(run, dtype=BF16))
    run = partial(compiled_block, "model.residual_dtype=float32", dtype=BF16)
    yield Case("pytorch#181568", "compiled, float32 residual stream", run)
    for budget in (0.5, 0.0):
        run = partial(dropout_with_activation_budget, budget)
        yield Case("pytorch#190758", f"dropout, activation_budget={budget}", run)


def main(*arguments: str) -> int:
    """Runs the cases and prints their table; returns 1 if one is wrong."""
    return try_all(list(cases()), __file__, *arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
