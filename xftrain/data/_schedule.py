"""Which source of a mixture each row comes from."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from itertools import count

# a source's index, or two subtrees with the first one's share of their rows
_Tree = int | tuple["_Tree", "_Tree", Fraction]


class MixtureSchedule:
    """Deals an endless sequence of rows out to sources, smoothly and by their weights.

    The sources are the leaves of a binary tree, built like a Huffman code: the two subtrees of the
    smallest weights are joined first. Of the first n rows of a subtree, its first part gets n times
    its share, rounded, and the other part the rest. Neither ever decreases, so each row belongs to
    one source, and the number of rows of a source is known for every n without state. It differs
    from n times its weight by less than 1.7: a rounding error of 1/2 is scaled down by the share of
    each subtree below it, and these grow at least like Fibonacci numbers.

    Args:
        weights: the weights, above 0; their sum may be any number.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._num_sources, numbers = len(weights), count(len(weights))
        # ties are broken by the order of the sources
        nodes: list[tuple[Fraction, int, _Tree]] = [
            (Fraction(weight), index, index) for index, weight in enumerate(weights)
        ]
        heapq.heapify(nodes)
        while len(nodes) > 1:
            small, first = _pop(nodes)
            large, second = _pop(nodes)
            tree = first, second, small / (small + large)
            heapq.heappush(nodes, (small + large, next(numbers), tree))
        self._tree = nodes[0][2]

    def counts(self, num_rows: int) -> list[int]:
        """The number of rows of each source among the first `num_rows`."""
        found = [0] * self._num_sources
        parts: list[tuple[_Tree, int]] = [(self._tree, num_rows)]
        while parts:
            tree, num = parts.pop()
            if isinstance(tree, int):
                found[tree] = num
                continue
            first, second, share = tree
            num_first = (2 * num * share.numerator + share.denominator) // (2 * share.denominator)
            parts += [(first, num_first), (second, num - num_first)]
        return found


def _pop(nodes: list[tuple[Fraction, int, _Tree]]) -> tuple[Fraction, _Tree]:
    weight, _, tree = heapq.heappop(nodes)
    return weight, tree
