"""The whole covering array with `--pairs`; a table of what was formed, refused and different.

    python -m tests.pairs.refusals                     # after a refusal was changed; on each device
    python -m pytest tests/pairs --pairs -n 14         # a GPU is used where there is one

Without it the suite runs a sample. `--pairs-seed` draws another array with the same property.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import pytest

from tests.pairs import arrays
from tests.pairs.covering import pairs_of

PROPERTY = "pairs"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pairs"):  # the processes of xdist are as many as the cores
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--pairs") or "pairs" in config.getoption("markexpr"):
        return
    whole = [item for item in items if item.get_closest_marker("pairs")]
    if whole:
        config.hook.pytest_deselected(items=whole)
        items[:] = [item for item in items if item not in whole]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if getattr(report, "when", "") == "call"
    ]
    notes = [
        json.loads(value)
        for one in reports
        for name, value in one.user_properties
        if name == PROPERTY
    ]
    if not notes:
        return
    terminalreporter.section("pairs of options")
    for line in summary(notes, int(terminalreporter.config.getoption("--pairs-seed"))):
        terminalreporter.write_line(line)


def summary(notes: list[dict[str, Any]], seed: int) -> list[str]:
    """The lines of the table."""
    factors, array = arrays.factors(), arrays.array(seed)
    ran = [note for note in notes if note["ran"]]
    formed = set().union(*(pairs_of(note["row"]) for note in ran)) if ran else set()
    reasons = Counter(arrays.refused().values())
    lines = [
        f"{len(factors)} options and keys with {sum(len(f.levels) for f in factors)} values",
        f"{array.num_pairs} pairs, of which formed: {len(formed & arrays.pairs(array))}",
        f"{len(array.unreachable)} more pairs stand in refused combinations alone",
        f"{len(array.rows)} rows, of which run: {len(ran)}",
        f"{sum(reasons.values())} refused combinations, for {len(reasons)} reasons:",
        *(f"  {count} x {reason}" for reason, count in sorted(reasons.items())),
    ]
    new = sorted({line for note in notes for line in note["refusals"]})
    lines += [f"{len(new)} new refusals:" * bool(new), *(f"  {line}" for line in new)]
    different = [note for note in notes if note["differences"]]
    lines.append(f"{len(different)} rows with differences")
    for note in different:
        lines += [f"  row {note['number']}: {said}" for said in note["differences"]]
    return [line for line in lines if line]
