"""Checks that `model.attn=auto` chooses the fastest backend for 20 shapes.

For each shape, auto measures and chooses as it does at the start of a run; then every backend is
timed, forward and backward, and the time of the choice is divided by the best time.

    python scripts/check_auto.py [--device cuda] [--flex] [--limit 1.03]

With `--flex`, FlexAttention is timed too; auto does not try it, since it would have to be compiled
for each shape. The script exits with 1 if a choice takes more than `--limit` times the best time.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch

from xftrain.interfaces import AttnBias, AttnCall, AttnCase, AttnShape
from xftrain.model.attn.auto import Auto, times_ms
from xftrain.model.backends import all_backends
from xftrain.model.bias.alibi import Alibi
from xftrain.utils.console import raised_log_level
from xftrain.utils.markdown import table


class Case(NamedTuple):
    """One attention call, with 16 query heads of width 64 or 8 of width 128."""

    bias: str
    M: int
    K: int
    tokens: int = 16384
    groups: int = 1

    def shape(self) -> AttnShape:
        """Returns the shape, with as many rows as `tokens` allows."""
        heads = 1024 // self.K
        return AttnShape(max(1, self.tokens // self.M), self.M, heads, heads // self.groups, self.K)

    def facts(self) -> AttnBias:
        """Returns the bias of the call."""
        heads = self.shape().H
        return {
            "causal": AttnBias(),
            "full": AttnBias(causal=False),
            "window 256": AttnBias(window=256),
            "alibi": Alibi().build(heads, None),
            "packed": AttnBias(seqlens=_documents(self.tokens)),
            "packed alibi": Alibi().build(heads, _documents(self.tokens)),
        }[self.bias]


CASES = [
    *(Case("causal", M, 64) for M in (256, 1024, 2048, 8192)),
    *(Case("causal", M, 128) for M in (1024, 4096, 16384)),
    *(Case("causal", 2048, K, groups=4) for K in (64, 128)),
    *(Case("full", M, 64) for M in (512, 4096)),
    *(Case("window 256", M, 64) for M in (1024, 4096, 8192)),
    *(Case("alibi", M, 64) for M in (1024, 8192)),
    Case("alibi", 4096, 128),
    *(Case("packed", 16384, K) for K in (64, 128)),
    Case("packed alibi", 16384, 64),
]


def _documents(tokens: int) -> tuple[int, ...]:
    """Returns document lengths, about 1,200 on average, that fill a row."""
    lengths = []
    while (remaining := tokens - sum(lengths)) > 0:
        lengths.append(min(remaining, 300 + 997 * (len(lengths) + 1) % 1800))
    return tuple(lengths)


def measure(case: Case, device: torch.device, dtype: torch.dtype, *, flex: bool) -> dict[str, str]:
    """Measures one case and returns its row of the table."""
    shape = case.shape()
    call = AttnCall(case.facts(), shape, dtype, device)
    auto = Auto()
    auto.choose([AttnCase(call, (0,))])
    assert auto.chosen is not None
    backends = [
        backend
        for backend in all_backends()
        if (flex or not backend.needs_compilation)
        and (backend.name != "naive" or shape.B * shape.H * shape.M**2 < 2**30)
        and not backend.unsupported(*call)
    ]
    # with different inputs than auto used, and more repetitions
    medians = times_ms(backends, call, seed=1, max_repeats=100)
    times = {backend.name: ms for backend, ms in zip(backends, medians, strict=True)}
    best = min(times, key=lambda name: times[name])
    return {
        "bias": case.bias,
        "B x M": f"{shape.B} x {shape.M}",
        "H, G, K": f"{shape.H}, {shape.G}, {shape.K}",
        "auto's choice": auto.chosen.name,
        "fastest": best,
        "ratio": f"{times[auto.chosen.name] / times[best]:.3f}",
        **{name: f"{ms:.3f}" for name, ms in sorted(times.items())},
    }


@raised_log_level()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--flex", action="store_true")
    parser.add_argument("--limit", type=float, default=1.03)
    parser.add_argument("--tokens", type=int, default=16384)
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for case in CASES:
        fitted = case._replace(tokens=args.tokens, M=min(case.M, args.tokens))
        rows.append(measure(fitted, device, dtype, flex=args.flex))
        print(*rows[-1].values(), sep="  ", file=sys.stderr)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(table(columns, [[row.get(column, "-") for column in columns] for row in rows]))
    over = [row for row in rows if float(row["ratio"]) > args.limit]
    print(f"{len(rows) - len(over)} of {len(rows)} within {args.limit:.2f} x the best time")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
