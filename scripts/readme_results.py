"""Writes a benchmark's results into docs/benchmark.md, between the two markers in that file.

python scripts/readme_results.py docs/benchmarks/2026-11-24-h100 [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from xftrain.benchmark import tables
from xftrain.benchmark.rows import as_markdown, read_rows
from xftrain.benchmark.verdict import verdict
from xftrain.config import registry

PAGE = Path(__file__).parents[1] / "docs" / "benchmark.md"
START, END = "<!-- results -->", "<!-- end of results -->"
PLOT = "attention_sweep-memory.png"


def results(folder: Path) -> str:
    """Returns the section in Markdown."""
    rows = [as_markdown(row) for row in read_rows(folder)]
    found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    place = folder.resolve().relative_to(PAGE.parent).as_posix()
    sweep = registry.load_class("callbacks", "attention_sweep")
    own = [row for row in rows if row["sweep"] == "attention_sweep"]
    parity = registry.load_class("callbacks", "parity").summary(  # type: ignore[attr-defined]
        [row for row in rows if row["sweep"] == "parity"], None
    )
    parts = [
        f"{found['device']}, driver {found['driver']}, torch {found['torch']}, xformers "
        f"{found['xformers']}, {found['date']}, `{found['command']}`. The whole report is "
        f"[{place}/report.md]({place}/report.md). {found.get('note', '')}".rstrip(),
        verdict(rows),
        sweep.head(own),  # type: ignore[attr-defined]
        f"![memory above the inputs against sequence length]({place}/plots/{PLOT})",
        parity,
        "ALiBi, forward and backward (16 heads of width 64, two rows):",
        tables.columns_of(
            [row for row in rows if row["sweep"] == "alibi"],
            {
                "way": "way",
                "M": "M",
                "ms": tables.outcome("ms"),
                "extra MiB": "extra_mib",
                "out error": "error_out",
                "kernel": "kernel",
            },
        ),
    ]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page would change"
    )
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        parser.error(f"{PAGE.name} has no {START} followed by {END}")
    new = f"{before}{START}\n\n{results(args.folder)}\n\n{END}{after}"
    if not args.check:
        PAGE.write_text(new, encoding="utf-8")
    return int(args.check and new != text)


if __name__ == "__main__":
    sys.exit(main())
