"""Compares training throughput and memory of xftrain with those of other implementations.

Each peer trains the same model on the same batches for a few steps. Every peer has its own process,
and the peers run one after the other:

- `xftrain:<backend>`, such as `xftrain:sdpa` or `xftrain:sdpa:loss=chunked+optim.eps=1e-6`: a run
  of the framework, with its metrics, loggers, progress and watchdog;
- `bare`, with the same choices: xftrain's own modules in a plain training loop;
- `nanogpt`: GPT-2 in plain PyTorch, compiled whole, from the same initial weights;
- `transformers`, `litgpt`, `x_transformers`: the nearest model of those libraries, compiled whole.

All peers share the batches (the counting task of xftrain), float32 weights under bfloat16 autocast,
TF32 for the matmuls that autocast leaves in float32, and the optimizer (see peers/setup.py).
`ms/step` is the wall time of the timed steps divided by their number. It includes making the batch,
copying and logging, but not the warm-up with its compilation; the device is synchronized only
before the first and after the last timed step. Memory is the peak allocated in that time. MFU is
(6 N + 12 L H K M) x tokens/s / the vendor's peak, with xftrain's definition of N for all peers, see
`model_flops` in peers/stopwatch.py. `loss` is that of the last step. A peer that is not installed,
crashes, runs out of memory or times out has a row that says so. OUT gets peers.csv, peers.md and
peers.png, which are written again after every peer, environment.json and peers.log.

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
from peers.report import STATUS_LABELS, Row, write
from peers.setup import LR, SHAPES, Setup
from peers.stopwatch import say

from xftrain.benchmark import environment
from xftrain.model.flops import FORMULA
from xftrain.utils.files import read_json, write_json
from xftrain.utils.processes import describe_exit, raising_stopped
from xftrain.version import installed_version

PEERS = ["nanogpt", "bare", "xftrain:sdpa", "xftrain:xformers", "xftrain:flex", "xftrain:auto"]
PEERS += ["transformers", "litgpt", "x_transformers"]
BASELINES = {"124m": "nanogpt", "llama_1b": "litgpt"}
PACKAGES = ("transformers", "litgpt", "x-transformers", "liger-kernel")
MAX_STDERR_CHARS = 400  # the last characters of stderr that are part of the reason of a crash


def run_peer(setup: Setup, timeout_s: float, log: Path) -> Row:
    """Measures one peer in its own process and returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [sys.executable, "-m", "peers", json.dumps(setup.as_dict()), str(result)]
        return {"peer": setup.peer, **outcome_of(command, result, timeout_s, log)}


def outcome_of(command: Sequence[str], result: Path, timeout_s: float, log: Path) -> Row:
    """Runs a command, and returns the row that it wrote or one that says how it ended.

    Args:
        command: the command.
        result: the file to which the command writes its row.
        timeout_s: time after which the command is killed.
        log: file to which the command's stderr is appended.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("ab") as errors:
        start = errors.tell()
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=errors,
            process_group=0,  # so that its child processes can be killed with it
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return {"status": "timeout", "reason": f"not done after {timeout_s:g} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    row = read_json(result)
    if row is None:
        output = " ".join(log.read_bytes()[start:].decode(errors="replace").split())
        reason = f"{describe_exit(process.returncode)}: {output[-MAX_STDERR_CHARS:]}"
        return {"status": "crashed", "reason": reason.removesuffix(": ")}
    return row


def environment_info(setup: Setup, rounds: int) -> dict[str, str]:
    """Returns the content of environment.json: machine, versions, setting and command."""
    sizes = setup.sizes
    setting = (
        f"{sizes.form}: {sizes.num_layers} layers, width {sizes.dim}, {sizes.num_heads} query "
        f"heads, {sizes.num_kv_heads} K/V heads, vocabulary {sizes.vocab_size}; {sizes.rows} x "
        f"{sizes.seq} tokens per step, {setup.warmup} warm-up steps, {setup.steps} timed steps, "
        f"{rounds} round(s), "
        f"{setup.precision}, {'compiled' if setup.compile else 'not compiled'}; "
        f"{setup.optimizer}. {FORMULA}."
    )
    found = environment.describe(torch.device(setup.device))
    found |= {package: installed_version(package) for package in PACKAGES}
    return found | {"setting": setting, "command": f"python {shlex.join(sys.argv)}"}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="124m")
    parser.add_argument("--rows", type=int, help="rows per batch; default 32, for llama_1b 4")
    parser.add_argument("--seq", type=int, help="tokens per row; default 1024, for llama_1b 2048")
    parser.add_argument("--steps", type=int, default=60, help="timed steps")
    parser.add_argument("--warmup", type=int, default=20, help="untimed steps before, at least 1")
    parser.add_argument(
        "--lr",
        type=float,
        default=LR,
        help="constant learning rate; small to compare losses",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated names")
    parser.add_argument("--override", action="append", default=[], help="for xftrain and bare")
    parser.add_argument("--baseline", help="peer of ratio 1; default nanogpt, for llama_1b litgpt")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--repeat", type=int, default=1, help="rounds over all peers")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per peer")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--tiny", action="store_true", help="4 steps of a tiny model, not compiled")
    args = parser.parse_args(argv)
    if min(args.steps, args.warmup, args.repeat) < 1:
        parser.error("--steps, --warmup and --repeat must be at least 1")
    for peer in args.peers.split(","):
        kind, _, more = peer.partition(":")
        if kind not in MODULES or (more and kind not in ("xftrain", "bare")):
            parser.error(f"no such peer: {peer} (one of {', '.join(PEERS)})")
    return args


def setup_of(args: argparse.Namespace) -> Setup:
    """Returns the setup that the arguments describe, without a peer."""
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
    if args.tiny:  # multithreading slows down operations on tensors this small
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    info = environment_info(setup, args.repeat)
    write_json(info, args.out / environment.FILE)
    log = args.out / "peers.log"
    log.unlink(missing_ok=True)  # it may be that of an earlier comparison
    rows: list[Row] = []
    todo = [(n, peer) for n in range(args.repeat) for peer in args.peers.split(",")]
    text = ""
    try:
        with raising_stopped():
            for repeat, peer in todo:
                row = run_peer(replace(setup, peer=peer), args.timeout, log)
                rows.append({**row, "repeat": repeat})
                ran = row["status"] == "ok"
                details = f"{row['ms_per_step']:.2f} ms/step" if ran else row["reason"]
                say(f"{peer}: {'ok' if ran else STATUS_LABELS[row['status']]}: {details}")
                text = write(args.out, rows, baseline, info)
    except (SystemExit, KeyboardInterrupt):  # still prints the rows that were measured
        say(f"stopped: {len(rows)} of {len(todo)} rows measured")
    print(f"\n{text}", end="")
    return int(len(rows) < len(todo) or all(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
