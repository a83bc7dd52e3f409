"""Compares how fast runs learn: the loss against steps, tokens and seconds.

All runs train on the same batches in the same order, from the same initial weights where their
models are the same, and are validated on the same held-out text. The run `nanogpt` is a plain
script in the form of nanoGPT's with nanoGPT's recipe, see learning/plain.py. Every other run is
one of xftrain: nanoGPT's recipe with the overrides that `--run` gives it. Each run has its own
process, and the runs of a seed follow one another.

Seconds are those of the training steps; compilation and validation are not part of them, and
`start-up s` says what the first steps took beyond the others. The table has the share of the
baseline's steps and seconds after which a run reaches the final loss of the baseline, interpolated
between two validations. OUT gets learning.csv, learning.md and learning.png, which are written
again after every run, environment.json and learning.log.

    python scripts/compare_learning.py --data FILES [--run 'NAME: OVERRIDE ...'] [--seeds 0,1]
        [--steps 1000] [--override OVERRIDE] [--out DIR] [--tiny]

for example --run 'muon: optim=muon optim.lr=2e-3'. Without --run, the runs are nanogpt, adamw and
muon.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from compare_peers import outcome_of
from learning.curve import Point
from learning.report import Curve, write
from learning.setup import PLAIN, Setup
from peers.stopwatch import say

from xftrain.benchmark import environment
from xftrain.utils.files import write_json
from xftrain.utils.processes import raising_stopped

RUNS = [PLAIN, "adamw:", "muon: optim=muon"]
TINY = ("model.num_layers=1", "model.dim=16", "model.num_heads=2", "seq=16", "batch_tokens=64")
TINY_DATA = ("data.tokenizer=bytes", "data.vocab_size=null", "data.num_workers=0")


def train(setup: Setup, timeout_s: float, log: Path) -> Curve:
    """Trains one run in its own process and returns its curve."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "curve.json"
        command = [sys.executable, "-m", "learning", json.dumps(setup.as_dict()), str(result)]
        row = outcome_of(command, result, timeout_s, log)
    if row["status"] != "ok":
        return Curve(setup.name, setup.seed, (), reason=f"{row['status']}: {row['reason']}")
    points = tuple(Point(*point) for point in row["points"])
    return Curve(setup.name, setup.seed, points, row["start_up_s"])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="files to train on, as data.path takes them")
    parser.add_argument("--run", action="append", help="'NAME: OVERRIDE ...', or nanogpt")
    parser.add_argument("--override", action="append", default=[], help="for all runs")
    parser.add_argument(
        "--baseline", help="the run whose loss is to be reached; default: the first"
    )
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--eval-every", type=int, default=50, help="steps between validations")
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds per run")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on bytes, not compiled")
    args = parser.parse_args(argv)
    if min(args.steps, args.eval_every) < 1:
        parser.error("--steps and --eval-every must be at least 1")
    runs = [parsed_run(parser, text) for text in args.run or RUNS]
    args.runs = dict(runs)
    if len(args.runs) < len(runs):
        parser.error(f"--run must give each run its own name, got {', '.join(n for n, _ in runs)}")
    args.baseline = args.baseline or next(iter(args.runs))
    if args.baseline not in args.runs:
        parser.error(f"--baseline must be one of {', '.join(args.runs)}, got {args.baseline}")
    try:
        args.seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds must be comma-separated integers, got {args.seeds}")
    return args


def parsed_run(parser: argparse.ArgumentParser, text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the name and the overrides of a run."""
    name, colon, overrides = text.partition(":")
    if not name or (not colon and name != PLAIN) or (overrides.strip() and name == PLAIN):
        parser.error(f"--run must be 'NAME: OVERRIDE ...' or {PLAIN}, got {text!r}")
    try:
        return name, tuple(shlex.split(overrides))
    except ValueError as error:  # a quote that is not closed
        parser.error(f"--run {text!r} cannot be split into overrides ({error})")


def setups(args: argparse.Namespace) -> list[Setup]:
    """Returns the runs to train, seed by seed."""
    tiny = (*TINY, *TINY_DATA) if args.tiny else ()
    return [
        Setup(
            name,
            overrides,
            shared=(f"data.path={args.data}", *tiny, *args.override),
            steps=args.steps,
            eval_every=args.eval_every,
            seed=seed,
            device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            precision=args.precision,
            compile=not args.tiny if args.compile is None else args.compile,
        )
        for seed in args.seeds
        for name, overrides in args.runs.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    todo = setups(args)
    args.out.mkdir(parents=True, exist_ok=True)
    info = environment.describe(torch.device(todo[0].device))
    given = "; ".join(f"{name}: {' '.join(o) or 'the recipe'}" for name, o in args.runs.items())
    info["setting"] = f"{args.steps} steps, seeds {', '.join(map(str, args.seeds))}. {given}."
    info["command"] = f"python {shlex.join(sys.argv)}"
    write_json(info, args.out / environment.FILE)
    log = args.out / "learning.log"
    log.unlink(missing_ok=True)  # it may be that of an earlier comparison
    curves: list[Curve] = []
    text = ""
    try:
        with raising_stopped():
            for setup in todo:
                curve = train(setup, args.timeout, log)
                curves.append(curve)
                end = f"loss {curve.points[-1].loss:.4f}" if curve.points else curve.reason
                say(f"{setup.name}, seed {setup.seed}: {end}")
                text = write(args.out, curves, args.baseline, info)
    except (SystemExit, KeyboardInterrupt):  # still prints the runs that have ended
        say(f"stopped: {len(curves)} of {len(todo)} runs trained")
    print(f"\n{text}", end="")
    return int(len(curves) < len(todo) or not any(curve.points for curve in curves))


if __name__ == "__main__":
    sys.exit(main())
