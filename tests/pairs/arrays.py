"""The covering array of this machine's device, made once a process."""

from __future__ import annotations

from functools import cache

from tests.pairs import refusals
from tests.pairs.covering import Array, Combination, Generator, pairs_of
from tests.pairs.factors import Factor, Level, Row, all_factors

SAMPLE = 6


@cache
def factors() -> list[Factor]:
    return all_factors()


@cache
def refused() -> dict[Combination, str]:
    return refusals.read(refusals.device_here())


@cache
def array(seed: int = 0) -> Array:
    return Generator(factors(), list(refused()), dict(refusals.COSTS), seed).array()


def sample() -> list[Row]:
    """The first rows, which have the most pairs, but for those that compile."""
    return [row for row in array().rows if row["compile"] == "false"][:SAMPLE]


def pairs(made: Array) -> set[tuple[Level, Level]]:
    """Every pair of an array."""
    return set().union(*map(pairs_of, made.rows))
