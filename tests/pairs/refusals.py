"""Which combinations are refused, and why: kept in a file a device.

`python -m tests.pairs.refusals` finds them anew on this machine, see `tests.pairs.find_refusals`.

A combination is the fewest levels, beside the defaults, that are refused for that reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import torch

from tests.pairs.covering import Combination
from tests.pairs.factors import OWN_OPTIONS, Factor, Level, Row, completed
from tests.pairs.runs import Places, normalized
from xftrain.commands import train as runner
from xftrain.config.compose import compose
from xftrain.errors import ConfigError

# Compiling takes most of a row's time; no more rows than needed have it.
COSTS: Mapping[Level, float] = {("compile", "true"): 0.05, ("compile", "cudagraphs"): 0.05}

Refusal = Callable[[Row], str | None]


def file_of(device: str) -> Path:
    """The file of a device, `cpu` or `cuda`."""
    return Path(__file__).parent / f"refusals_{device}.txt"


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def read(device: str) -> dict[Combination, str]:
    """Combinations and their reasons; empty where none have been found on such a device."""
    path = file_of(device)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found: dict[Combination, str] = {}
    for line in lines:
        levels, _, reason = line.partition(" :: ")
        pairs = (level.partition("=") for level in levels.split(" & "))
        found[frozenset((name, value) for name, _, value in pairs)] = reason
    return found


def as_lines(refused: Mapping[Combination, str]) -> list[str]:
    """The lines of the file."""
    return sorted(
        " & ".join(f"{name}={value}" for name, value in sorted(combination)) + f" :: {reason}"
        for combination, reason in refused.items()
    )


class _Ready(Exception):
    """All checks before training have passed."""


def refusal_before_training(
    row: Row, factors: list[Factor], places: Places, run_dir: Path
) -> str | None:
    """The reason, normalized, without training."""

    def train(*_: object) -> None:
        raise _Ready

    try:
        cfg = compose(*places.typed(row, factors), config_dir=OWN_OPTIONS)
        with mock.patch.object(runner, "_train", train):
            runner.run(cfg, run_dir)
    except ConfigError as error:
        return normalized(str(error), places)
    except _Ready:
        return None
    raise AssertionError("a run has trained nothing and has not been refused")


def smallest(row: Row, factors: list[Factor], refusal: Refusal) -> tuple[Combination, str]:
    """The fewest levels of a refused row that are refused beside the defaults, and the reason.

    With those of the defaults that it takes, as far as the reason names their keys.
    """
    names = [one.name for one in factors if one.name in row]
    defaults = {one.name: one.levels[0] for one in factors}
    needed = [name for name in names if row[name] != defaults[name]]
    reason = refusal(_with(row, needed, factors))
    assert reason is not None, "the row was refused before"
    size = max(len(needed) // 2, 1)
    while True:
        start = 0
        while start < len(needed):
            fewer = needed[:start] + needed[start + size :]
            if said := refusal(_with(row, fewer, factors)):
                needed, reason = fewer, said
            else:
                start += size
        if size == 1:
            break
        size //= 2
    found = _with(row, needed, factors)
    levels = {name: found[name] for name in needed if name in found}
    for factor in factors:
        key = re.escape(factor.key.replace("/", "."))
        is_named = re.search(rf"(?<![\w.]){key}(?![\w.]*\w)", reason) is not None
        if factor.name in levels or factor.name not in found or not is_named:
            continue
        others = (completed(levels | {factor.name: level}, factors) for level in factor.levels[1:])
        if any(refusal(other) is None for other in others):
            levels[factor.name] = found[factor.name]
    return frozenset(levels.items()), reason


def _with(row: Row, names: list[str], factors: list[Factor]) -> Row:
    """The defaults, but for these levels of the row."""
    return completed({name: row[name] for name in names}, factors)


def row_with(combination: Combination, factors: list[Factor]) -> Row:
    """The defaults, but for these levels and the options whose fields they are."""
    chosen = dict(combination)
    parents = dict(one.parent for one in factors if one.name in chosen and one.parent)
    return completed(parents | chosen, factors)


if __name__ == "__main__":
    from tests.pairs.find_refusals import main

    main()
