"""Tries public reports of silently wrong kernels on this GPU, by the backends of this package.

Each case calls a backend, a loss or a kernel where a report says that torch, cuDNN, xFormers,
FlashAttention or Triton is wrong, and compares the output and the gradients with float64. Prints
one table in Markdown; exits with 1 where a case is wrong. What a backend refuses, with its reason,
is not wrong. Without a GPU no case is run. Cases that may leave the GPU of their process unusable
run in one of their own, and so do all others once that has happened.

    python scripts/check_kernels.py [PATTERN]     # cases whose report or words contain the pattern
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
LIMIT = {BF16: 0.03, FP16: 5e-3, FP32: 5e-3}  # of relative errors; float32 multiplies in TF32
ROWS = 1024  # queries of the float64 reference at a time


def reference(bias: AttnBias, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients in float64, some rows of scores at a time."""
    assert bias.scale is None and bias.softcap is None, "no report is about these"
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


def found(dtype: torch.dtype, mine: list[Tensor], right: list[Tensor], first: int = 0) -> str:
    """`right`, or what is wrong; of dq without its first features."""
    faults, worst = [], 0.0
    for name, value, truth in zip(RESULTS, mine, right, strict=False):
        if not value.isfinite().all():
            faults.append(f"{name} is not finite")
            continue
        if name == "dq":
            value, truth = value[..., first:], truth[..., first:]
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
    """A backend's output and gradients, on views of one tensor as a model has them.

    Where asked for, scores are about -120, the gradient is that of a sum, whose strides are 0, or
    the last row of the batch alone is compared.
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
    mine = output_and_grads(lambda *x: backend(*x, handle), (q, k, v), grad)
    compared = [q, k, v, grad]
    if last_row:
        mine, compared = ([x[-1:] for x in group] for group in (mine, compared))
    first = 1 if far_below_zero else 0
    kernel = backend.kernel(*call)
    return kernel, found(dtype, mine, reference(bias, *compared), first)


def loss_of_many_logits(loss: Loss, num_tokens: int, vocab_size: int) -> Verdict:
    """A loss of more than 2^31 logits, against float64 by chunks."""
    x = torch.randn(num_tokens, 64, device=CUDA, dtype=BF16)
    weight = torch.randn(vocab_size, 64, device=CUDA, dtype=BF16) / 10  # 16 bits hold the logits
    labels = torch.randint(vocab_size, (num_tokens,), device=CUDA)

    mine = output_and_grads(
        lambda x, weight: loss(x, weight, labels, with_accuracy=False).loss,
        (x, weight),
        torch.ones((), device=CUDA),
    )
    right = [torch.zeros((), device=CUDA).double(), x.double() * 0, weight.double() * 0]
    for rows in torch.arange(num_tokens, device=CUDA).split(ROWS):
        logits = x[rows].double() @ weight.double().T
        own = labels[rows, None]
        right[0] += (logits.logsumexp(-1) - logits.gather(1, own)[:, 0]).sum()
        share = logits.softmax(-1).scatter_add_(1, own, -torch.ones_like(own).double())
        right[1][rows] = share @ weight.double()
        right[2] += share.T @ x[rows].double()
    return type(loss).__name__.lower(), found(BF16, mine, right)


def features_beside_many() -> Verdict:
    """More than 2^31 numbers through `prepend_features`."""
    x = torch.randn(2, 524288, 32, 64, device=CUDA, dtype=BF16)
    features = torch.randn(1, 1, 32, 16, device=CUDA, dtype=BF16)
    joined = prepend_features(x, features)
    same = torch.equal(joined[..., 16:], x) and bool((joined[..., :16] == features).all())
    return "prepend_features_", "right (equal)" if same else "WRONG"


def compiled_block(*overrides: str, dtype: torch.dtype | None = None) -> Verdict:
    """Gradients of a compiled model against float64, beside those of the same without compiling."""
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

    right, plain, mine = (
        gradients(exact=exact, compiles=compiles)
        for exact, compiles in ((True, False), (False, False), (False, True))
    )
    errors = [
        (relative_error(x, truth), relative_error(eager, truth))
        for x, eager, truth in zip(mine, plain, right, strict=True)
    ]
    is_right = all(error < 3 * eager + 1e-4 for error, eager in errors)
    worst = max(error for error, _ in errors)
    return "inductor", f"{'right' if is_right else 'WRONG:'} ({worst:.1e})"


def dropout_under_a_budget(budget: float) -> Verdict:
    """The gradient along itself against a difference of losses, in float64, of the same seed."""
    names = ("model.dropout=0.3", "model.ffn=gelu", f"model.activation_budget={budget}")
    cfg = xftrain.compose("model.attn=sdpa", "model.num_layers=1", "compile=true", *names)
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
    """One a report and a way to run it."""

    def attend(report: str, words: str, *args: Any, alone: bool = False, **how: Any) -> Case:
        return Case(report, f"{args[0]}: {words}", partial(attention, *args, **how), alone)

    causal, dense, four = AttnBias(), AttnBias(dense=True), (0.5, 0.25, 0.125, 0.0625)
    row, grouped = AttnShape(1, 704, 4, 4, 64), AttnShape(1, 704, 4, 2, 64)
    for words, bias in (("window", AttnBias(window=128)), ("dense", dense)):
        for dtype in (BF16, FP16):
            said = f"{words}, 704 positions, scores of -120, {dtype}"
            yield attend("pytorch#196678", said, "sdpa", bias, row, dtype, far_below_zero=True)
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
            said = f"slopes {slopes}, documents {seqlens}, 1,025 positions"
            yield attend("pytorch#153799", said, "flex", bias, replace(row, M=1025))
    yield attend("pytorch#158212", "window", "flex", AttnBias(window=128), replace(row, M=1000))
    yield attend("pytorch#146377", "views, grouped", "flex", causal, replace(grouped, M=1000))
    yield attend("flash-attention#1133", "window M - 1", "xformers", AttnBias(window=703), row)
    bias = AttnBias(seqlens=(1, 76, 33, 594), window=33)
    yield attend("flash-attention#443", "packed window", "xformers", bias, grouped)
    for name in ("sdpa", "xformers", "flex"):
        said = "gradient of a sum"
        yield attend("flash-attention#355", said, name, causal, grouped, expanded_grad=True)
    for name in ("sdpa", "xformers"):
        short = AttnShape(66000, 16, 2, 2, 32)
        yield attend("pytorch#142228", "66,000 rows of 16", name, causal, short, last_row=True)
        mqa = AttnShape(1, 129, 4, 1, 64)
        yield attend("pytorch#191937", "one K/V head, 129 keys", name, dense, mqa)
    for length in (65, 127, 200, 1001):
        shape = AttnShape(2, length, 4, 4, 64)
        said = f"full, {length} positions"
        yield attend("cudnn-frontend#160", said, "sdpa", AttnBias(causal=False), shape)
    yield attend("pytorch#128348", "q, k wider than v", "sdpa", AttnBias(slopes=four), row)
    many = AttnShape(520, 1024, 64, 64, 64)
    for name in ("sdpa", "xformers", "flex"):
        said = "more than 2^31 numbers"
        how = {"last_row": True, "alone": True}
        yield attend("flash-linear-attention#1080", said, name, causal, many, **how)
    scores, said = AttnShape(2049, 1024, 1, 1, 64), "more than 2^31 scores"
    yield attend("onnxruntime#32299", said, "naive", causal, scores, FP32, last_row=True)
    for loss in (Full(), Fused(chunk_tokens=65536)):
        run = partial(loss_of_many_logits, loss, 44000, 50304)
        yield Case("pytorch#111484", f"loss={type(loss).__name__.lower()}, 2.2e9 logits", run)
    yield Case(
        "flash-linear-attention#1080", "prepend_features, 2.1e9 numbers", features_beside_many
    )
    for norm in ("layernorm", "rmsnorm"):
        run = partial(compiled_block, f"model.norm={norm}", "model.linear_bias=true")
        yield Case("pytorch#193061", f"compiled, {norm}, float32", run)
        yield Case("pytorch#191433", f"compiled, {norm}, bf16", partial(run, dtype=BF16))
    run = partial(compiled_block, "model.residual_dtype=float32", dtype=BF16)
    yield Case("pytorch#181568", "compiled, float32 residual stream", run)
    for budget in (0.5, 0.0):
        run = partial(dropout_under_a_budget, budget)
        yield Case("pytorch#190758", f"dropout, activation_budget={budget}", run)


def main(*arguments: str) -> int:
    """Runs the cases and prints the table."""
    return try_all(list(cases()), __file__, *arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
