"""Compares training throughput and memory of xftrain with the alternatives a user has.

One model and one batch, trained for a few steps by each peer in a process of its own, one after
the other:

- `xftrain:<backend>`, as `xftrain:sdpa` or `xftrain:sdpa:loss=chunked+optim.eps=1e-6`: a
  run of the framework, with its metrics, loggers, progress and watchdog;
- `bare`, with the same choices: xftrain's own modules in a loop written by hand;
- `nanogpt`: GPT-2 in plain PyTorch, compiled whole, from the same initial weights;
- `transformers`, `litgpt`, `x_transformers`: the nearest model of those libraries, compiled whole.

The same for all: batches (rows that count, from xftrain's data source), float32 weights under
bfloat16 autocast, TF32 for what autocast leaves in float32, and the optimizer (see peers/setup.py).
`ms/step` is the wall time of the timed steps, synchronized with the device only at both ends,
divided by their number; it includes making the batch, copying and logging, but not the warm-up
with its compilation. `tokens/s` follows from it; memory is the peak allocated in that time. MFU is
(6 N + 12 L H K M) x tokens/s / the vendor's peak, for all by xftrain's own rule of what N is, see
`model_flops` in peers/stopwatch.py. `loss` is that of the last step. A peer that is not installed,
crashes, runs out of memory or of time is a row that says so. OUT gets peers.csv, written after
every peer, peers.md, peers.png, environment.json and peers.log.

    python scripts/compare_peers.py [--shape 124m|llama_1b] [--peers a,b,c] [--out DIR] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from peers import MODULES
from peers.report import WORDS, Row, write
from peers.setup import LR, SHAPES, Setup
from peers.stopwatch import say

from xftrain.benchmark import environment
from xftrain.model.flops import FORMULA
from xftrain.utils.files import read_json, write_json
from xftrain.utils.processes import describe_exit, raising_stopped
from xftrain.version import installed_version

ALL = ["nanogpt", "bare", "xftrain:sdpa", "xftrain:xformers", "xftrain:flex", "xftrain:auto"]
ALL += ["transformers", "litgpt", "x_transformers"]
BASELINES = {"124m": "nanogpt", "llama_1b": "litgpt"}
PACKAGES = ("transformers", "litgpt", "x-transformers", "liger-kernel")
LAST_WORDS = 400  # characters of what a process printed, for the reason of its end


def run_peer(setup: Setup, timeout_s: float, log: Path) -> Row:
    """The row of one peer, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [sys.executable, "-m", "peers", json.dumps(setup.as_dict()), str(result)]
        return {"peer": setup.peer, **outcome_of(command, result, timeout_s, log)}


def outcome_of(command: Sequence[str], result: Path, timeout_s: float, log: Path) -> Row:
    """What the process left in `result`, or how it ended without.

    Args:
        command: writes the row.
        result: where to.
        timeout_s: longest time to wait.
        log: gets what the process prints to stderr.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("ab") as errors:
        start = errors.tell()
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=errors,
            process_group=0,  # so that what it started can be ended with it
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return {"status": "timeout", "reason": f"no end after {timeout_s:g} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    row = read_json(result)
    if row is None:
        said = " ".join(log.read_bytes()[start:].decode(errors="replace").split())
        reason = f"{describe_exit(process.returncode)}: {said[-LAST_WORDS:]}".removesuffix(": ")
        return {"status": "crashed", "reason": reason}
    return row


def described(setup: Setup, rounds: int) -> dict[str, str]:
    """What environment.json holds: the machine, the versions, the setting and the command."""
    sizes = setup.sizes
    setting = (
        f"{sizes.form}: {sizes.num_layers} layers, width {sizes.dim}, {sizes.num_heads} heads on "
        f"{sizes.num_kv_heads}, vocabulary {sizes.vocab_size}; {sizes.rows} x {sizes.seq} tokens a "
        f"step, {setup.steps} timed steps after {setup.warmup}, {rounds} time(s), "
        f"{setup.precision}, {'compiled' if setup.compile else 'not compiled'}; "
        f"{setup.optimizer}. {FORMULA}."
    )
    found = environment.describe(torch.device(setup.device))
    found |= {package: installed_version(package) for package in PACKAGES}
    return found | {"setting": setting, "command": f"python {shlex.join(sys.argv)}"}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="124m")
    parser.add_argument("--rows", type=int, help="of a batch; 32, or 4 of llama_1b")
    parser.add_argument("--seq", type=int, help="tokens of a row; 1024, or 2048 of llama_1b")
    parser.add_argument("--steps", type=int, default=60, help="timed steps")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them, at least 1")
    parser.add_argument(
        "--lr", type=float, default=LR, help="constant learning rate; small to compare losses"
    )
    parser.add_argument("--peers", default=",".join(ALL), help="names with commas between them")
    parser.add_argument("--override", action="append", default=[], help="of xftrain and bare")
    parser.add_argument("--baseline", help="has ratio 1; nanogpt, or litgpt of llama_1b")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--repeat", type=int, default=1, help="rounds of all peers in turn")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds, of each peer")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--tiny", action="store_true", help="4 steps of a tiny model, not compiled")
    args = parser.parse_args(argv)
    if min(args.steps, args.warmup, args.repeat) < 1:
        parser.error("--steps, --warmup and --repeat are at least 1")
    for peer in args.peers.split(","):
        kind, _, more = peer.partition(":")
        if kind not in MODULES or (more and kind not in ("xftrain", "bare")):
            parser.error(f"no such peer: {peer} (one of {', '.join(ALL)})")
    return args


def setup_of(args: argparse.Namespace) -> Setup:
    """What the arguments ask for, without a peer."""
    sizes = SHAPES[args.shape].tiny() if args.tiny else SHAPES[args.shape]
    return Setup(
        "",
        replace(sizes, rows=args.rows or sizes.rows, seq=args.seq or sizes.seq),
        steps=4 if args.tiny else args.steps,
        warmup=2 if args.tiny else args.warmup,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        precision=args.precision,
        compile=not args.tiny if args.compile is None else args.compile,
        overrides=tuple(args.override),
        lr=args.lr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    setup, baseline = setup_of(args), args.baseline or BASELINES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tiny:  # threads cost more than such tensors, and where cores are busy far more
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = described(setup, args.repeat)
    write_json(found, args.out / environment.FILE)
    log = args.out / "peers.log"
    log.unlink(missing_ok=True)  # of another comparison
    rows: list[Row] = []
    todo = [(n, peer) for n in range(args.repeat) for peer in args.peers.split(",")]
    text = ""
    try:
        with raising_stopped():
            for repeat, peer in todo:
                row = run_peer(replace(setup, peer=peer), args.timeout, log)
                rows.append({**row, "repeat": repeat})
                ran = row["status"] == "ok"
                said = f"{row['ms_per_step']:.2f} ms/step" if ran else row["reason"]
                say(f"{peer}: {'ok' if ran else WORDS[row['status']]}: {said}")
                text = write(args.out, rows, baseline, found)
    except (SystemExit, KeyboardInterrupt):  # what was measured is worth showing
        say(f"stopped: {len(rows)} of {len(todo)} measured")
    print(f"\n{text}", end="")
    return int(len(rows) < len(todo) or all(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
