"""Measures the framework's overhead against a bare training loop.

The bare loop is that of the tutorial that xftrain grew from, with a model written by hand
(vocabulary 64, width 128, 3 layers, 8 heads, FFN 512, xFormers causal attention), AdamW, autocast
and GradScaler, and 64 x 64 tokens per step. The framework trains gpt_tiny, and also the bare loop's
model. The script prints the steps per second of each, measured in alternating rounds.

    python scripts/compare_bare_loop.py [--steps 300] [--rounds 3] [--device cuda] [overrides ...]

Given overrides, such as `compile=cudagraphs trainer.precision=auto`, it also trains gpt_tiny with
them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xftrain import compose, run
from xftrain.model.attn.xformers_ops.loading import xformers_ops

VOCAB, WIDTH, LAYERS, HEADS, FFN, SEQ, BATCH = 64, 128, 3, 8, 512, 64, 64


class BareBlock(nn.Module):
    def __init__(self, op: tuple | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ffn = xformers_ops().SwiGLU(WIDTH, FFN)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        B, M, _ = x.shape
        ops = xformers_ops()
        q, k, v = self.qkv(self.norm1(x)).view(B, M, 3, HEADS, WIDTH // HEADS).unbind(2)
        mask = ops.LowerTriangularMask()
        y = ops.memory_efficient_attention(q, k, v, attn_bias=mask, op=self.op)
        x = x + self.out(y.reshape(B, M, WIDTH))
        return x + self.ffn(self.norm2(x))


class BareGPT(nn.Module):
    def __init__(self, op: tuple | None) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
        self.blocks = nn.ModuleList(BareBlock(op) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def bare_loop(steps: int, device: str) -> float:
    """Returns the steps per second of the bare loop, without the first tenth of the steps."""
    op = None
    if device == "cpu":
        from xftrain.model.attn.xformers_ops.cpu import CPUBackward, CPUForward

        op = (CPUForward, CPUBackward)
    on_gpu = device == "cuda"
    torch.manual_seed(0)
    model = BareGPT(op).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(device, enabled=on_gpu)
    warmup = steps // 10
    for step in range(steps):
        if step == warmup:
            _wait(device)
            start = time.perf_counter()
        starts = torch.randint(0, VOCAB, (BATCH, 1), device=device)
        rows = (starts + torch.arange(SEQ + 1, device=device)) % VOCAB
        with torch.autocast(device, torch.float16, enabled=on_gpu):
            logits = model(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % 80 == 0:
            accuracy = (logits.argmax(-1) == rows[:, 1:]).float().mean()
            print(f"  bare step {step} loss {loss.item():.4f} accuracy {accuracy.item():.2%}")
    _wait(device)
    return (steps - warmup) / (time.perf_counter() - start)


def framework(steps: int, device: str, *overrides: str) -> float:
    """Returns the steps per second of a run with the default callbacks and loggers.

    They are the median over the intervals between two records, which are 10 steps apart. The time
    of validation and checkpoints is not included.
    """
    cfg = compose(
        "model.attn=xformers",
        f"trainer={'gpu' if device == 'cuda' else 'cpu'}",
        f"trainer.precision={'16-mixed' if device == 'cuda' else '32-true'}",
        "data.stop_at_accuracy=null",
        f"max_steps={steps}",
        "callbacks.progress.style=none",
        *overrides,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = run(cfg, Path(folder))
    return result["tokens_per_s"] / (SEQ * BATCH)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    speeds: dict[str, list[float]] = {"bare loop": [], "gpt_tiny": [], "same model": []}
    for _ in range(args.rounds):
        speeds["bare loop"].append(bare_loop(args.steps, args.device))
        speeds["gpt_tiny"].append(framework(args.steps, args.device))
        # the bare loop's layers have biases, and its FFN is 512 wide
        same = (f"model.ffn.hidden_dim={FFN}", "model.linear_bias=true")
        speeds["same model"].append(framework(args.steps, args.device, *same))
        if args.overrides:
            series = speeds.setdefault("with overrides", [])
            series.append(framework(args.steps, args.device, *args.overrides))
    bare = statistics.median(speeds["bare loop"])
    for name, series in speeds.items():
        figures = " ".join(f"{speed:6.1f}" for speed in series)
        ratio = statistics.median(series) / bare
        print(f"{name:14} steps/s: {figures}   {ratio:.1%} of the bare loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
