"""Measures what packing saves: trains on the same documents as one packed row and as padded rows.

The documents are those of a corpus, by default the sources of Python's standard library, which
`data=text` reads, tokenizes, cuts to `seq` and packs. The same GPT is trained on each batch twice:
packed, with attention that keeps the documents apart, and as rows padded to the longest document of
the batch. Matmuls use torch's choice of algorithm, since each padded batch has a new size, for
which `matmul=auto` would measure again. The script prints tokens/s, counting only the tokens of the
documents, and peak memory.

    python scripts/compare_packing.py [--corpus FOLDER] [--steps 20] [overrides ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import sysconfig
from functools import partial

import torch
from torch import Tensor

from xftrain import compose
from xftrain.commands import builder
from xftrain.config import registry
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import IGNORED_LABEL, Batch, DataSource
from xftrain.model.gpt import GPT
from xftrain.train.hardware import compute_dtype, resolve
from xftrain.utils.console import raised_log_level
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory
from xftrain.utils.markdown import table
from xftrain.utils.timing import wall_ms

DEFAULTS = ["data=text", "data.packing=true", "data.tokenizer=bpe", "data.val_fraction=0.05"]
DEFAULTS += ["seq=8192", "batch_tokens=16384", "model.pos=rope"]


def padded(batch: Batch) -> Batch:
    """Returns the documents of a packed row as rows, padded to the longest document."""
    assert batch.seqlens is not None
    longest = max(batch.seqlens)

    def rows(packed_1M: Tensor, filler: int) -> Tensor:
        documents = packed_1M[0].split(list(batch.seqlens or ()))
        return torch.stack(
            [
                torch.nn.functional.pad(one, (0, longest - len(one)), value=filler)
                for one in documents
            ]
        )

    positions_1M = torch.arange(longest)[None]
    return Batch(rows(batch.tokens_BM, 0), rows(batch.labels_BM, IGNORED_LABEL), positions_1M)


def train(cfg: RunConfig, data: DataSource, batches: list[Batch]) -> list[list[float]]:
    """Trains a new model; returns the batches' times in ms, their losses, and the peak in MiB.

    The first three batches are trained on once before, as a warm-up.
    """
    device, precision = resolve(cfg.trainer.accelerator, cfg.trainer.precision)
    dtype = compute_dtype(precision)
    loss = builder.build_loss(cfg)
    torch.manual_seed(0)
    model: GPT = builder.build_model(cfg, data).to(device)
    schedule = registry.build(cfg.schedule)
    optim = registry.build(cfg.optim)
    optimizer, _ = optim.build(model, schedule, 1000)
    means: list[Tensor] = []

    def step(batch: Batch) -> None:
        there = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            handle = model.prepare(*there.shape_BM, there.seqlens)
            x_BMD = model.hidden(there.tokens_BM, there.positions_1M, handle)
            flat = (x_BMD.flatten(0, 1), model.head.weight, there.labels_BM.flatten())
            sums = loss(*flat, with_accuracy=False)
        mean = sums.loss / sums.num_labels
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        means.append(mean.detach())

    for batch in batches[:3]:
        step(batch)
    reset_peak_memory(device)
    times = [wall_ms(partial(step, batch), device) for batch in batches]
    return [times, torch.stack(means[3:]).tolist(), [peak_memory_mib(device)]]


@raised_log_level()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--corpus", default=sysconfig.get_path("stdlib"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg = validate_as(RunConfig, compose(*DEFAULTS, f"data.path={args.corpus}", *args.overrides))
    data = builder.build_data(cfg)
    batches = [data.batch("train", step) for step in range(args.steps)]
    lengths = [batch.seqlens or () for batch in batches]
    num_tokens = sum(batch.num_tokens for batch in batches)
    mean = num_tokens / sum(map(len, lengths))
    print(
        f"{len(batches)} batches of {num_tokens / len(batches):,.0f} tokens, with "
        f"{statistics.mean(map(len, lengths)):.1f} documents of {mean:,.0f} tokens on average; the "
        f"longest of a batch has {statistics.mean(map(max, lengths)):,.0f} tokens on average"
    )
    lines, speeds = [], []
    for form, made in (("packed", batches), ("padded", [padded(batch) for batch in batches])):
        times, losses, (peak_mib,) = train(cfg, data, made)
        share = 1 - num_tokens / sum(batch.num_tokens for batch in made)
        speeds.append(num_tokens / sum(times) * 1e3)
        figures = f"{statistics.mean(times):.1f}", f"{speeds[-1]:,.0f}", f"{peak_mib:,.0f}"
        lines.append([form, f"{share:.0%}", *figures, f"{statistics.mean(losses):.3f}"])
    print(table(["rows", "padding", "ms/step", "tokens/s", "peak MiB", "loss"], lines))
    print(f"packed: {speeds[0] / speeds[1]:.2f} times the tokens/s of padded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
