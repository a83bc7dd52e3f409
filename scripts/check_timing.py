"""Compares the benchmark's times with triton.testing.do_bench on the same calls.

Both time five attention calls, forward and backward, in seven alternating rounds. The script prints
one table, and exits with 1 if the medians differ by more than 5 %. It needs an NVIDIA GPU.

    python scripts/check_timing.py
"""

from __future__ import annotations

import statistics
import sys

import torch
from triton.testing import do_bench

from xftrain.benchmark.attention import build_call
from xftrain.benchmark.cells import attention_cell
from xftrain.benchmark.measure import Stopwatch
from xftrain.benchmark.tables import table
from xftrain.utils.timing import interleaved_times_ms

LIMIT = 0.05
ROUNDS = 7
CALLS = [  # backend, bias, M; the calls are long enough to be bound by the device, not by Python
    ("naive", "full", 4096),
    ("xformers", "full", 8192),
    ("xformers", "causal", 16384),
    ("sdpa", "causal", 16384),
    ("sdpa", "alibi", 8192),
]


def main() -> int:
    device = torch.device("cuda")
    stopwatch = Stopwatch(device)
    lines, worst = [], 0.0
    for backend, bias, length in CALLS:
        cell = attention_cell(
            "check",
            {"name": backend},
            {"name": bias},
            {"name": "mha"},
            rows=2,
            num_heads=8,
            head_dim=64,
            length=length,
            dtype="float16",
            device="cuda",
        )
        call = build_call(cell).both
        ours, theirs = [], []
        for _ in range(ROUNDS):
            timed = [stopwatch.once(call)]
            (series,) = interleaved_times_ms(timed, budget_s=0.15, min_repeats=5, max_repeats=100)
            ours.append(statistics.median(series))
            theirs.append(do_bench(call, warmup=20, rep=150, return_mode="median"))
        mine, other = statistics.median(ours), statistics.median(theirs)
        difference = mine / other - 1
        worst = max(worst, abs(difference))
        lines.append(
            [f"{backend} {bias} M={length:,}", f"{mine:.3f}", f"{other:.3f}", f"{difference:+.1%}"]
        )
    print(table(["call", "xftrain ms", "do_bench ms", "difference"], lines))
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
