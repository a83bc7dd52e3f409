"""Finds which combinations are refused on this machine, and why, by making rows in processes.

    python -m tests.pairs.refusals [FILE] [--jobs N]

The file is that of this machine's device unless one is named. It is written anew whenever
something was found, so that a search that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import torch

from tests.pairs import refusals
from tests.pairs.covering import Combination, Generator
from tests.pairs.factors import Factor, Row, all_factors
from tests.pairs.runs import Places, make_corpus

Found = dict[Combination, str]


def find(
    processes: Executor,
    folder: Path,
    factors: list[Factor],
    known: Iterable[Combination],
    note: Callable[[Found], None] = lambda found: None,
) -> Found:
    """All of them, by making covering arrays until no row is refused.

    Args:
        processes: to run rows in, each begun by `begin`.
        folder: for the runs, which end before they train.
        factors: all of them.
        known: combinations to try first, which saves most of the search.
        note: is called with all that has been found, whenever there is more.
    """
    found: Found = {}

    def add(more: Iterable[tuple[Combination, str]]) -> None:
        for combination, reason in more:
            if combination not in found:
                found[combination] = reason
                sys.stderr.write(refusals.as_lines({combination: reason})[0] + "\n")
        note(found)

    tried = list(known)
    rows = [refusals.row_with(one, factors) for one in tried]
    reasons = processes.map(partial(reason_of, folder), rows)
    for combination, row, reason in zip(tried, rows, reasons, strict=True):
        if reason is not None and not _has_one(row, found):  # which refuses it as well
            add([(combination, reason)])
    while True:
        rows = Generator(factors, list(found), dict(refusals.COSTS)).array().rows
        reasons = processes.map(partial(reason_of, folder), rows)
        refused = [(row, said) for row, said in zip(rows, reasons, strict=True) if said is not None]
        if not refused:
            return found
        while refused:
            one_of_each = {reason: row for row, reason in refused}.values()
            add(processes.map(partial(smallest_of, folder, dict(found)), one_of_each))
            refused = [(row, reason) for row, reason in refused if not _has_one(row, found)]


def begin() -> None:
    """Makes a process ready."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def reason_of(folder: Path, row: Row) -> str | None:
    """Why a row is refused before it trains; None also where it fails otherwise, which is said."""
    run_dir = folder / f"{os.getpid()}-{time.monotonic_ns()}"
    try:
        return refusals.refusal_before_training(row, _factors(), places_in(folder), run_dir)
    except Exception as error:
        typed = " ".join(places_in(folder).typed(row, _factors()))
        sys.stderr.write(f"FAILED: {type(error).__name__}: {error} of {typed}\n")
        return None


def smallest_of(folder: Path, found: Found, row: Row) -> tuple[Combination, str]:
    """See `refusals.smallest`; by another combination than those that have been found."""

    def refusal(row: Row) -> str | None:
        return None if _has_one(row, found) else reason_of(folder, row)

    return refusals.smallest(row, _factors(), refusal)


def places_in(folder: Path) -> Places:
    """The corpus is there."""
    return Places(folder / "corpus", folder / "cache")


@cache
def _factors() -> list[Factor]:
    return all_factors()


def _has_one(row: Row, found: Mapping[Combination, str]) -> bool:
    return any(combination <= row.items() for combination in found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    typed = parser.parse_args(arguments)
    file = typed.file or refusals.file_of(refusals.device_here())

    def write(found: Found) -> None:
        file.write_text("\n".join(refusals.as_lines(found)) + "\n", encoding="utf-8")

    factors = _factors()
    levels = {(one.name, level) for one in factors for level in one.levels}
    listed = [*refusals.read("cpu"), *refusals.read("cuda")]
    known = [one for one in dict.fromkeys(listed) if one <= levels]
    spawning = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(typed.jobs, mp_context=spawning, initializer=begin) as processes,
    ):
        make_corpus(places_in(Path(name)).corpus)
        # the fewest levels first: what they refuse needs no more of them
        found = find(processes, Path(name), factors, sorted(known, key=len), write)
    sys.stderr.write(f"{len(found)} combinations are refused: all are in {file}\n")
