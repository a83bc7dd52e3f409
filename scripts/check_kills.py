"""Checks that commands killed at random moments and resumed end like uninterrupted ones.

Each command is killed one to three times, either all its processes or one rank, and resumed as a
user would resume it (`ckpt=auto`, `resume_sweep`, the same command for a benchmark). The result is
compared with an uninterrupted one: weights and optimizer states must be bitwise equal; each row of
`metrics.csv`, point in TensorBoard, row of a sweep's table and row of a benchmark must exist once,
with equal values. Results are recorded in `--folder`, so that the same command resumes the check.

    python scripts/check_kills.py --kind one,ranks,text,sweep,benchmark --kills 20 --seed 0

The script exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.pairs.runs import make_corpus  # noqa: E402
from tests.reliability.kill_cases import Case, kinds  # noqa: E402
from tests.reliability.kills import Harness  # noqa: E402
from xftrain.utils.console import raised_log_level  # noqa: E402
from xftrain.utils.markdown import table  # noqa: E402

HEADER = (
    *("command", "kills", "where they hit", "weights bitwise equal", "rows exist once and equal"),
    "other ranks ended after at most",
)


def cases(harness: Harness, num_kills: int, folder: Path) -> list[Case]:
    """Runs cases until there were `num_kills` kills; recorded cases are not run again."""
    notes = folder / f"{harness.name}_{harness.seed}.jsonl"
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    done = [Case(**json.loads(line)) for line in lines]
    while (left := num_kills - sum(len(case.hits) for case in done)) > 0:
        case = harness.case(len(done), left)
        done.append(case)
        with notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(case)) + "\n")
        say(f"{case.kind} {case.number}: {len(case.hits)} kills ({', '.join(case.hits)})")
        for difference in (case.weights + case.rows)[:8]:
            say(f"  {difference}")
    return done


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@raised_log_level()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", default="one,ranks,text,sweep,benchmark")
    parser.add_argument("--kills", type=int, default=20, help="number of kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/kills"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    known = kinds(make_corpus(folder / "corpus"))
    rows, is_right = [], True
    for name in given.kind.split(","):
        harness = Harness(name, known[name], folder / f"{name}_{given.seed}", given.seed)
        done = cases(harness, given.kills, folder)
        where = Counter(hit for case in done for hit in case.hits)
        equal, right = (sum(not getattr(case, key) for case in done) for key in ("weights", "rows"))
        is_right &= equal == right == len(done)
        hits = ", ".join(f"{hit} {count}" for hit, count in where.most_common())
        survivors = f"{max(case.survivors_s for case in done):.1f} s"
        counts = (f"{equal} of {len(done)}", f"{right} of {len(done)}")
        rows.append([name, str(sum(where.values())), hits, *counts, survivors])
    say("\n" + table(HEADER, rows))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
