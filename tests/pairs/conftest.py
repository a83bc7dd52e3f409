"""The whole covering array with `--pairs`; a table of what was formed, refused and different.

    python -m tests.pairs.refusals                     # after a refusal was changed; on each device
    python -m pytest tests/pairs --pairs -n 14         # a GPU is used where there is one

Without it the suite runs a sample, which is a part of the array. `--pairs-seed` draws another array
with the same property.
"""

from __future__ import annotations

import json
import logging
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
        logging.getLogger("torch.__trace").propagate = False  # thousands of lines of each row


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_whole = config.getoption("--pairs") or "pairs" in config.getoption("markexpr")
    other = "pairs_sample" if is_whole else "pairs"
    unwanted = [item for item in items if item.get_closest_marker(other)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


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
    lines = [
        f"{len(factors)} options and keys with {sum(len(f.levels) for f in factors)} values",
        f"{array.num_pairs} pairs, of which formed: {len(formed & arrays.pairs(array))}",
        f"{len(array.unreachable)} more pairs stand in refused combinations alone",
        f"{len(array.rows)} rows, of which run: {len(ran)}",
    ]
    listed = Counter(arrays.refused().values())
    lines.append(f"{sum(listed.values())} refused combinations, for {len(listed)} reasons:")
    lines += [f"  {count} x {reason}" for reason, count in sorted(listed.items())]
    new = Counter(line for note in notes for line in note["refusals"])
    lines += [f"{len(new)} new refused combinations, and how many rows had them:"] * bool(new)
    lines += [f"  {count} x {line}" for line, count in sorted(new.items())]
    different = [note for note in notes if note["differences"]]
    lines.append(f"{len(different)} rows with differences")
    for note in different:
        lines += [f"  row {note['number']}: {said}" for said in note["differences"]]
    largest = max((note["mib"], note["number"]) for note in notes)
    slowest = max((note["seconds"], note["number"]) for note in notes)
    lines.append("the largest process had {} MiB after row {}".format(*largest))
    lines.append("the slowest row took {} s, row {}".format(*slowest))
    return lines
