"""A covering array: rows in which every pair of levels of two factors occurs at least once.

Greedy, as AETG (Cohen et al., 1997): of several candidate rows the one with the most new pairs is
taken. Equal arguments give equal rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from tests.pairs.factors import Factor, Level, Row

Combination = frozenset[Level]

_CANDIDATES = 12
_TRIES = 40  # for a row with a given pair, until the pair counts as one that cannot be formed


@dataclass
class Array:
    """Rows, and the pairs that none of them can have since a combination is refused."""

    rows: list[Row] = field(default_factory=list)
    num_pairs: int = 0
    unreachable: list[tuple[Level, Level]] = field(default_factory=list)


class Generator:
    """Makes the rows.

    Args:
        factors: parents before their children.
        refused: combinations of levels that no row may have.
        costs: levels to use no more than is needed, with what a new pair is then worth.
        seed: of the draws.
    """

    def __init__(
        self,
        factors: Sequence[Factor],
        refused: Sequence[Combination],
        costs: dict[Level, float],
        seed: int = 0,
    ) -> None:
        self.levels = [(one.name, level) for one in factors for level in one.levels]
        self.index = {level: number for number, level in enumerate(self.levels)}
        self.of_factor = {
            one.name: [self.index[one.name, level] for level in one.levels] for one in factors
        }
        self.order = [one.name for one in factors if one.parent is None]
        self.parent = {one.name: one.parent for one in factors}
        self.children: dict[int, list[str]] = {}
        for one in factors:
            if one.parent is not None:
                self.children.setdefault(self.index[one.parent], []).append(one.name)
        self.refused_with: dict[int, list[frozenset[int]]] = {}
        for combination in refused:
            numbers = frozenset(self.index[level] for level in combination)
            for number in numbers:
                self.refused_with.setdefault(number, []).append(numbers - {number})
        self.worth = np.ones(len(self.levels))
        for level, worth in costs.items():
            self.worth[self.index[level]] = worth
        self.costly = {name for name, _ in costs}
        self.draw = random.Random(seed)
        self.new = self._feasible()

    def array(self) -> Array:
        """All rows."""
        made = Array(num_pairs=int(self.new.sum()) // 2)
        while self.new.any():
            first, second = self._next_pair()
            rows = [row for _ in range(_TRIES) if (row := self._row(first, second))][:_CANDIDATES]
            if not rows:
                made.unreachable.append((self.levels[first], self.levels[second]))
                self.new[first, second] = self.new[second, first] = False
                made.num_pairs -= 1
                continue
            best = max(rows, key=lambda row: self.new[np.ix_(row, row)].sum())
            self.new[np.ix_(best, best)] = False
            made.rows.append(dict(self.levels[number] for number in sorted(best)))
        return made

    def closure(self, number: int) -> list[int]:
        """A level and those without which it is not there."""
        parent = self.parent[self.levels[number][0]]
        return [number] if parent is None else [*self.closure(self.index[parent]), number]

    def _feasible(self) -> np.ndarray:
        size = len(self.levels)
        found = np.zeros((size, size), dtype=bool)
        closures = [self.closure(number) for number in range(size)]
        for first, second in combinations(range(size), 2):
            together = {*closures[first], *closures[second]}
            names = {self.levels[number][0] for number in together}
            # one level a factor, and the two are different factors
            if self.levels[first][0] == self.levels[second][0] or len(names) < len(together):
                continue
            found[first, second] = found[second, first] = not self._is_refused(together)
        return found

    def _is_refused(self, numbers: set[int]) -> bool:
        return any(
            rest <= numbers for number in numbers for rest in self.refused_with.get(number, [])
        )

    def _next_pair(self) -> tuple[int, int]:
        counts = self.new.sum(axis=1) * self.worth
        first = self.draw.choice(np.flatnonzero(counts == counts.max()).tolist())
        return first, self.draw.choice(np.flatnonzero(self.new[first]).tolist())

    def _row(self, first: int, second: int) -> list[int] | None:
        """A row with these two levels; None where a draw led to a combination that is refused."""
        row: dict[str, int] = {}
        chosen: set[int] = set()
        gains = np.zeros(len(self.levels))

        def put(number: int) -> None:
            row[self.levels[number][0]] = number
            chosen.add(number)
            np.add(gains, self.new[number], out=gains)

        for number in dict.fromkeys([*self.closure(first), *self.closure(second)]):
            put(number)
        if self._is_refused(chosen):
            return None
        waiting = self.order[:]
        self.draw.shuffle(waiting)
        waiting.sort(key=lambda name: name not in self.costly)  # or other levels would force them
        for number in list(chosen):
            waiting += self.children.get(number, [])
        while waiting:
            name = waiting.pop(0)
            if name not in row:
                allowed = [
                    number
                    for number in self.of_factor[name]
                    if not any(rest <= chosen for rest in self.refused_with.get(number, []))
                ]
                if not allowed:
                    return None
                put(max(allowed, key=lambda number: self._gain(number, gains)))
                waiting += self.children.get(row[name], [])
        return sorted(chosen)

    def _gain(self, number: int, gains: np.ndarray) -> float:
        """New pairs, half of those of the fields that come with it, and chance between equals."""
        fields = self.children.get(number, [])
        more = sum(max(gains[level] for level in self.of_factor[name]) for name in fields)
        return float((gains[number] + more / 2) * self.worth[number] + self.draw.random() / 2)


def pairs_of(row: Row) -> set[tuple[Level, Level]]:
    """Every pair of a row, in the order of the names."""
    return set(combinations(sorted(row.items()), 2))
