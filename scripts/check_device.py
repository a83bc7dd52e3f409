"""Trains the counting task with every option on this machine, and prints one table in Markdown.

It trains every backend in every precision of the device for 80 steps, and compares the loss with
that of the tutorial at that step. Then it trains every bias, head grouping, feed-forward, position
encoding, norm, loss and data source until the task is solved.

    python scripts/check_device.py [--out report.md] [--quick]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from datetime import date
from pathlib import Path

import torch

from xftrain import compose, run
from xftrain.config import registry
from xftrain.errors import ConfigError

TUTORIAL_LOSS = 0.0017  # the loss of the tutorial's own loop at step 80
STEPS = 80


def cases(on_gpu: bool, quick: bool) -> list[tuple[str, bool]]:
    """Returns the overrides of each case, and whether it runs all steps even if solved earlier."""
    precisions = ["16-mixed", "bf16-mixed"] if on_gpu else ["32-true"]
    backends = registry.option_names("model/attn")
    found = [
        (f"model.attn={backend} trainer.precision={precision}", True)
        for backend in backends
        for precision in precisions
    ]
    if quick:
        return found
    groups = [group for group in registry.GROUPS if group.startswith("model/")]
    for group in [*groups, "loss", "data"]:
        for name in registry.option_names(group):
            if group == "model/attn" or name in ("full", "text") and group != "loss":
                continue
            found.append((f"{group.replace('/', '.')}={name}", False))
    found += [(f"data=counting_packed model.attn={backend}", False) for backend in backends]
    found += [(f"model.ffn.impl={impl}", False) for impl in ("torch", "xformers", "liger")]
    found += [
        ("model.bias=alibi model.bias.impl=dense model.attn=xformers", False),
        ("model.bias=window model.bias.window=8 model.attn=xformers", False),
        ("model.bias=alibi model.heads=gqa data=counting_packed model.attn=xformers", False),
        ("model.attn=xformers seq=2048", False),
        ("model.attn=naive seq=512", False),
        ("compile=true model.attn=sdpa", False),
        ("compile=true model.attn=xformers", False),
        ("trainer.precision=32-true model.attn=xformers", False),
    ]
    return found


def row(overrides: str, all_steps: bool) -> tuple[str, bool]:
    """Trains a case; returns its row of the table, and whether it was solved or refused."""
    # the tutorial's learning rate is constant
    stop = [f"max_steps={STEPS}", "schedule=constant", "data.stop_at_accuracy=null"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            quiet = "callbacks.progress.style=none"
            cfg = compose(*overrides.split(), *(stop if all_steps else []), quiet)
            result = run(cfg, Path(folder))
        except ConfigError as error:
            return f"| `{overrides}` | refused: {error} | | | | | |", True
        except Exception as error:
            traceback.print_exc()
            return f"| `{overrides}` | FAILED: {type(error).__name__}: {error} | | | | | |", False
    metrics = result["metrics"]
    loss = metrics["train/loss"]
    solved = metrics["val/accuracy"] >= 0.999 and (not all_steps or loss <= TUTORIAL_LOSS)
    cells = [
        f"`{overrides}`",
        result["kernel"],
        str(result["steps"]),
        f"{loss:.4f}",
        f"{metrics['val/accuracy']:.2%}",
        f"{result['tokens_per_s']:,.0f}",
        f"{result['wall_s']:.1f}",
    ]
    return f"| {' | '.join(cells)} |", solved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="only train the backends")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    lines = [
        f"# The counting task with every option: {device}",
        "",
        f"{date.today()}, torch {torch.__version__}, `python {' '.join(sys.argv)}`. "
        f"The tutorial's own loss at step {STEPS} is {TUTORIAL_LOSS}.",
        "",
        "| overrides | kernel | steps | train loss | accuracy | tokens/s | s |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = []
    for overrides, all_steps in cases(on_gpu, args.quick):
        line, good = row(overrides, all_steps)
        lines.append(line)
        print(line, flush=True)
        if not good:
            failed.append(overrides)
    lines += ["", f"{len(failed)} not solved: {failed}" if failed else "All solved."]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(lines[-1])
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
