"""Checks that the tests detect mutations of operators, conditions, constants and statements.

The script works in a copy of the repository. It applies one mutation at a time and runs the tests
that reach the mutated statement, the fastest first, until one fails. Each mutant runs in a fork of
a process that has already imported the libraries, so that it takes a second or two. Tests marked
slow are skipped.

    python scripts/mutate.py --parts losses,overrides --mutants 40 --seed 0 [--only xftrain/x.py]

`--mutants` is the number of mutations drawn from each part. The mutants that survive are listed at
the end: each is either a gap in the tests or an equivalent mutant. Statements that a test reaches
only through another process, such as a command that it starts, do not count as reached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.forked_tests import (  # noqa: E402
    LOG,
    Coverage,
    Recorder,
    Selector,
    run_in_fork,
    run_pytest,
)
from scripts.mutations import Mutation, instrumented, mutated, mutations  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# The files to mutate and the test files of each part, as globs.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention": (
        (
            "xftrain/model/attn/naive.py",
            "xftrain/model/attn/sdpa.py",
            "xftrain/model/attn/xformers.py",
            "xftrain/model/bias/*.py",
            "xftrain/model/attn/_dense.py",
            "xftrain/model/attn/_folding.py",
            "xftrain/model/attn/xformers_ops/*.py",
            "xftrain/interfaces/*.py",
        ),
        ("tests/model/attn/test_*.py", "tests/model/test_model.py", "tests/model/test_generate.py"),
    ),
    "losses": (("xftrain/loss/*.py",), ("tests/loss/test_losses.py",)),
    "data": (("xftrain/data/*.py", "xftrain/data/*/*.py"), ("tests/data/test_*.py",)),
    "checkpoint": (
        (
            "xftrain/checkpoint/file.py",
            "xftrain/callbacks/checkpoint.py",
            "xftrain/train/same_run.py",
            "xftrain/checkpoint/file_format.py",
            "xftrain/checkpoint/plain_pickle.py",
            "xftrain/train/restored.py",
            "xftrain/checkpoint/saved_config.py",
        ),
        (
            "tests/checkpoint/test_checkpoint.py",
            "tests/reliability/test_checkpoint_*.py",
            "tests/reliability/test_exact.py",
            "tests/train/test_running.py",
        ),
    ),
    "overrides": (
        ("xftrain/config/overrides.py",),
        (
            "tests/config/test_overrides.py",
            "tests/launch/test_cli.py",
            "tests/config/test_config.py",
        ),
    ),
    "redaction": (
        ("xftrain/utils/redaction.py", "xftrain/utils/spellings.py"),
        (
            "tests/utils/*redact*.py",
            "tests/launch/test_cli.py",
            "tests/reliability/test_hostile.py",
        ),
    ),
    "sweep_record": (
        ("xftrain/multirun/record.py",),
        (
            "tests/multirun/*sweep*.py",
            "tests/multirun/test_searches.py",
            "tests/reliability/test_hostile.py",
        ),
    ),
}
LIBRARIES = (
    *("hydra", "lightning.pytorch", "matplotlib.pyplot", "numpy", "omegaconf"),
    *("pydantic", "pytest", "safetensors.torch", "tensorboard", "tokenizers", "torch"),
    *("torch.utils.tensorboard", "torch.utils.checkpoint", "yaml"),
)
TIMEOUT_S = 60.0  # timeout of a mutant, plus four times the duration of its tests


def measure_coverage(tests: Sequence[str], files: Sequence[str]) -> Coverage:
    """Runs all tests of a part once, without a mutation, and records what they reach."""
    record_file = Path("coverage.json")
    sources = {Path(file): Path(file).read_text(encoding="utf-8") for file in files}

    def record() -> int:
        recorder = Recorder()
        run_pytest(tests, recorder, "-m", "not slow")
        seconds = {t: s for t, s in recorder.seconds.items() if t not in recorder.failed}
        lines = {
            file: {line: sorted(names) for line, names in found.items()}
            for file, found in recorder.lines.items()
        }
        record_file.write_text(
            json.dumps([seconds, lines, sorted(recorder.failed)]), encoding="utf-8"
        )
        return 0

    try:
        for path, source in sources.items():
            path.write_text(instrumented(source, str(path)), encoding="utf-8")
        if run_in_fork(record, 3600.0) != 0:
            raise SystemExit(f"the tests cannot run: {LOG.read_text(encoding='utf-8')[-3000:]}")
    finally:
        for path, source in sources.items():
            path.write_text(source, encoding="utf-8")
    seconds, lines, failed = json.loads(record_file.read_text(encoding="utf-8"))
    for name in failed:
        say(f"skipped, since it fails without a mutation: {name}")
    return Coverage(
        seconds,
        {file: {int(n): set(t) for n, t in found.items()} for file, found in lines.items()},
    )


def fails(names: Sequence[str], coverage: Coverage) -> bool:
    """Whether one of the tests fails with the current files, or they exceed the timeout."""
    files = sorted({name.partition("::")[0] for name in names})
    limit_s = TIMEOUT_S + 4 * sum(coverage.seconds[name] for name in names)
    return run_in_fork(lambda: run_pytest(files, Selector(names), "-x", "--tb=short"), limit_s) != 0


def try_mutation(file: str, mutation: Mutation, coverage: Coverage) -> str:
    """Returns `killed`, `survived`, or `not reached`."""
    names = coverage.tests(file, mutation)
    if not names:
        return "not reached"
    path = Path(file)
    source = path.read_text(encoding="utf-8")
    path.write_text(mutated(source, mutation), encoding="utf-8")
    try:
        return "killed" if fails(names, coverage) else "survived"
    finally:
        path.write_text(source, encoding="utf-8")


def matching(patterns: Sequence[str]) -> list[str]:
    """Returns the files that match the patterns, each once."""
    found = (sorted(str(path) for path in Path().glob(pattern)) for pattern in patterns)
    return list(dict.fromkeys(name for names in found for name in names))


def run_in_copy(args: argparse.Namespace) -> int:
    """Tests the mutants of all parts; the working folder is the copy."""
    for library in LIBRARIES:
        __import__(library)
    not_killed: list[str] = []
    for part in args.parts.split(","):
        patterns, tests = PARTS[part]
        files = [file for file in matching(patterns) if not args.only or file in args.only]
        began = time.monotonic()
        coverage = measure_coverage(matching(args.tests or tests), files)
        say(f"{part}: {len(coverage.seconds)} tests pass, {time.monotonic() - began:.0f} s")
        seconds = coverage.seconds
        if fails(sorted(seconds, key=lambda name: seconds[name])[:20], coverage):
            raise SystemExit(f"tests fail without a mutation: {LOG.read_text(encoding='utf-8')}")
        candidates = [
            (file, mutation)
            for file in files
            for mutation in mutations(Path(file).read_text(encoding="utf-8"))
        ]
        rng = random.Random(f"{args.seed} {part}")
        sample = sorted(rng.sample(candidates, min(args.mutants, len(candidates))))
        counts: dict[str, int] = defaultdict(int)
        for file, mutation in sample:
            result = try_mutation(file, mutation, coverage)
            counts[result] += 1
            line = f"{result:11} {file}:{mutation.first_line}  {mutation.description}"
            say(line)
            not_killed += [line] * (result != "killed")
        totals = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
        elapsed_s = time.monotonic() - began
        say(f"{part}: {totals}, of {len(candidates)} possible mutants ({elapsed_s:.0f} s)")
    say("\n" + "\n".join(["not killed:", *not_killed] if not_killed else ["all killed"]))
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--mutants", type=int, default=40, help="number of mutants of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="mutate only these files of the parts")
    parser.add_argument(
        "--tests", nargs="*", help="test files to use instead of those of the parts"
    )
    parser.add_argument("--copy", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.copy:
        return run_in_copy(args)
    with tempfile.TemporaryDirectory(prefix="mutants-") as copy:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(copy) / name)
        # Bytecode would hide a mutant with the size and the modification second of the original.
        environment = {**os.environ, "PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1"}
        script = Path(copy) / "scripts" / Path(__file__).name
        command = [sys.executable, str(script), *sys.argv[1:], "--copy", copy]
        return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
