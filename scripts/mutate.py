"""Checks that tests detect one-line mutations of operators, conditions, constants, statements.

In a copy of the package one change is made at a time, and the tests that reach the statement run,
the quickest first, until one fails. This process has imported the libraries and forks one for each
mutant, so that a mutant takes a second or two. Tests that are marked slow are left out.

    python scripts/mutate.py --parts losses,overrides --mutants 40 --seed 0 [--only xftrain/x.py]

`--mutants` is the number drawn from each part. What survives is listed at the end: a gap in the
tests, or a change that changes nothing. Tests that only run a command in another process do not
count as reaching a line.
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

from scripts.forked_tests import LOG, Chooser, Reached, Recorder, in_fork, run_pytest  # noqa: E402
from scripts.mutations import Mutation, marked, mutated, mutations  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# The files and the tests of each part, as globs, which include new files.
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
TIMEOUT_S = 60.0  # timeout of a mutant, in addition to four times the duration of its tests


def reached_by(tests: Sequence[str], files: Sequence[str]) -> Reached:
    """Runs all tests of a part once, without a mutation."""
    noted = Path("reached.json")
    sources = {Path(file): Path(file).read_text(encoding="utf-8") for file in files}

    def record() -> int:
        recorder = Recorder()
        run_pytest(tests, recorder, "-m", "not slow")
        seconds = {t: s for t, s in recorder.seconds.items() if t not in recorder.failed}
        lines = {
            file: {line: sorted(names) for line, names in found.items()}
            for file, found in recorder.lines.items()
        }
        noted.write_text(json.dumps([seconds, lines, sorted(recorder.failed)]), encoding="utf-8")
        return 0

    try:
        for path, source in sources.items():
            path.write_text(marked(source, str(path)), encoding="utf-8")
        if in_fork(record, 3600.0) != 0:
            raise SystemExit(f"the tests cannot run: {LOG.read_text(encoding='utf-8')[-3000:]}")
    finally:
        for path, source in sources.items():
            path.write_text(source, encoding="utf-8")
    seconds, lines, failed = json.loads(noted.read_text(encoding="utf-8"))
    for name in failed:
        say(f"fails without a mutation, and is left out: {name}")
    return Reached(
        seconds,
        {file: {int(n): set(t) for n, t in found.items()} for file, found in lines.items()},
    )


def fails(names: Sequence[str], reached: Reached) -> bool:
    """Whether one of these tests fails with the current files, or exceeds the timeout."""
    files = sorted({name.partition("::")[0] for name in names})
    limit_s = TIMEOUT_S + 4 * sum(reached.seconds[name] for name in names)
    return in_fork(lambda: run_pytest(files, Chooser(names), "-x", "--tb=short"), limit_s) != 0


def fate(file: str, mutation: Mutation, reached: Reached) -> str:
    """`killed`, `survived`, or `not reached`."""
    names = reached.tests(file, mutation)
    if not names:
        return "not reached"
    path = Path(file)
    source = path.read_text(encoding="utf-8")
    path.write_text(mutated(source, mutation), encoding="utf-8")
    try:
        return "killed" if fails(names, reached) else "survived"
    finally:
        path.write_text(source, encoding="utf-8")


def matching(patterns: Sequence[str]) -> list[str]:
    """Files of the package or tests, each once."""
    found = (sorted(str(path) for path in Path().glob(pattern)) for pattern in patterns)
    return list(dict.fromkeys(name for names in found for name in names))


def serve(given: argparse.Namespace) -> int:
    """In the copy: imports the libraries, and goes through the parts."""
    for library in LIBRARIES:
        __import__(library)
    alive: list[str] = []
    for part in given.parts.split(","):
        patterns, tests = PARTS[part]
        files = [file for file in matching(patterns) if not given.only or file in given.only]
        began = time.monotonic()
        reached = reached_by(matching(given.tests or tests), files)
        say(f"{part}: {len(reached.seconds)} tests pass, {time.monotonic() - began:.0f} s")
        if fails(sorted(reached.seconds, key=lambda name: reached.seconds[name])[:20], reached):
            raise SystemExit(f"tests fail without a mutation: {LOG.read_text(encoding='utf-8')}")
        all_of = [
            (file, one)
            for file in files
            for one in mutations(Path(file).read_text(encoding="utf-8"))
        ]
        draw = random.Random(f"{given.seed} {part}")
        chosen = sorted(draw.sample(all_of, min(given.mutants, len(all_of))))
        counts: dict[str, int] = defaultdict(int)
        for file, mutation in chosen:
            became = fate(file, mutation, reached)
            counts[became] += 1
            line = f"{became:11} {file}:{mutation.first_line}  {mutation.said}"
            say(line)
            alive += [line] * (became != "killed")
        told = ", ".join(f"{count} {became}" for became, count in sorted(counts.items()))
        say(f"{part}: {told} of {len(all_of)} ({time.monotonic() - began:.0f} s)")
    say("\n" + "\n".join(["not killed:", *alive] if alive else ["all killed"]))
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--mutants", type=int, default=40, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="files of the parts")
    parser.add_argument("--tests", nargs="*", help="in place of the parts' own")
    parser.add_argument("--copy", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.copy:
        return serve(given)
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
        # a mutant may be as long as the source, and be written in the same second
        environment = {**os.environ, "PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1"}
        script = Path(copy) / "scripts" / Path(__file__).name
        command = [sys.executable, str(script), *sys.argv[1:], "--copy", copy]
        return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
