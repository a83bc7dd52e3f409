"""Compares two benchmark reports and flags what became slower or larger than the spread explains.

A time is slower if its 10th percentile is above the former 90th percentile and its median more
than 5 % above the former median. Memory is larger if it grew by more than 2 % and more than 1 MiB.
A cell that used to run and no longer does, or whose result used to be right and is now wrong, is
worse as well. Cells that exist only in the first report are listed. The script exits with 1 if
anything is worse.

    python scripts/compare_reports.py outputs/before outputs/after [--all]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from xftrain.benchmark.rows import read_rows
from xftrain.benchmark.tables import figure, table
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

Row = dict[str, Any]

SLOWER, LARGER, LARGER_MIB = 1.05, 1.02, 1.0
TIMES = ("ms", "fwd_ms", "step_ms", "ms_per_token")
WORSE = ("SLOWER", "LARGER", "WRONG")
MEMORY = ("extra_mib", "peak_mib")  # the peak is compared if there is no `extra_mib`


def is_row(row: Row) -> bool:
    """Whether the fields to compare have the types that a benchmark writes."""
    texts = all(isinstance(row.get(name), str) for name in ("cell", "status", "device"))
    spread = [f"{name}_{end}" for name in TIMES if row.get(name) for end in ("p10", "p90")]
    errors = ["error_alone"] if row.get("error_packed") is not None else []
    needed = [row.get(name) for name in (*spread, *errors)]
    others = [row.get(name) for name in (*TIMES, *MEMORY, "error_packed")]
    figures = [*needed, *(value for value in others if value is not None)]
    return texts and all(type(value) in (int, float) for value in figures)


def compare(before: Row, after: Row) -> list[tuple[str, float | None, float | None, str]]:
    """Returns the field, both values and the verdict of each comparison.

    The verdict is empty if neither side is worse.
    """
    if before["status"] != after["status"]:
        verdict = f"{before['status']} became {after['status']}"
        return [("status", None, None, verdict if before["status"] == "ok" else f"({verdict})")]
    found = []
    for name in TIMES:
        if not before.get(name) or not after.get(name):
            continue
        old, new = before[name], after[name]
        verdict = ""
        if after[f"{name}_p10"] > before[f"{name}_p90"] and new > SLOWER * old:
            verdict = "SLOWER"
        elif after[f"{name}_p90"] < before[f"{name}_p10"] and old > SLOWER * new:
            verdict = "faster"
        found.append((name, old, new, verdict))
    if is_right(before) and not is_right(after):
        found.append(("result", None, None, "WRONG"))
    for name in MEMORY if before.get("extra_mib") is None else MEMORY[:1]:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            continue
        verdict = ""
        if new > LARGER * old and new > old + LARGER_MIB:
            verdict = "LARGER"
        elif old > LARGER * new and old > new + LARGER_MIB:
            verdict = "smaller"
        found.append((name, old, new, verdict))
    return found


def is_right(row: Row) -> bool:
    """Whether the result of a row is right; rows without a check count as right."""
    if row.get("error_packed") is not None and row["error_packed"] > 2 * row["error_alone"]:
        return False
    return not row.get("faults") and row.get("right", True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="also show unchanged figures")
    args = parser.parse_args(argv)
    sides = []
    for folder in (args.before, args.after):
        try:
            rows = read_rows(folder)
        except ConfigError as error:
            parser.error(one_line(str(error)))
        if not rows:
            parser.error(f"{one_line(str(folder))} has no rows.jsonl of a benchmark")
        if not all(map(is_row, rows)):
            parser.error(f"{one_line(str(folder))} has a row that no benchmark wrote: delete it")
        sides.append({row["cell"]: row for row in rows})
    before, after = sides
    devices = [{row["device"] for row in side.values()} for side in sides]
    if devices[0] != devices[1]:
        print(
            f"times are from different devices, {devices[0]} and {devices[1]}: do not compare them"
        )
    lines, regressions = [], 0
    for key in [key for key in before if key in after]:
        for name, old, new, verdict in compare(before[key], after[key]):
            regressions += verdict in WORSE or verdict.startswith("ok became")
            if verdict or args.all:
                ratio = f"{new / old:.2f} x" if old and new else ""
                values = ["" if value is None else figure(value) for value in (old, new)]
                lines.append([key, name, *values, ratio, verdict])
    if lines:
        print(table(["cell", "figure", "before", "after", "after/before", "verdict"], lines))
    gone = [key for key in before if key not in after]
    for key in gone:
        print(f"only before: {key}")
    both, new_ones = len(before) - len(gone), len(after.keys() - before.keys())
    print(f"{both} rows in both, {len(gone)} gone, {new_ones} new; {regressions} worse")
    return int(regressions > 0)


if __name__ == "__main__":
    sys.exit(main())
