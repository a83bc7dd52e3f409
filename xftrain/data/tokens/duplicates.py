"""Counts exact copies among documents in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16
MAX_HASHES = 1 << 24  # 128 MiB


class DuplicateCounter:
    """Counts documents whose hash an earlier document has had.

    The hashes have 8 bytes, so that among ten million different documents two are taken for copies
    with a probability of one in 400,000.

    Args:
        max_hashes: maximum number of distinct hashes that are remembered.
    """

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._runs: list[npt.NDArray[np.uint64]] = []  # sorted, disjoint, ever shorter
        self._block: list[int] = []
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether copies of further documents are no longer found."""
        return sum(run.size for run in self._runs) >= self._max_hashes

    def add(self, number: int) -> None:
        """Counts one document by its hash, a number below 2**64."""
        self._block.append(number)
        if len(self._block) == _BLOCK:
            self._flush()

    def count(self) -> int:
        """The number of copies so far."""
        self._flush()
        return self._count

    def _flush(self) -> None:
        found = np.unique(np.array(self._block, dtype=np.uint64))
        num_hashes = len(self._block)
        self._block = []
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, found), run.size - 1)
            found = found[run[places] != found]
        self._count += num_hashes - found.size
        if self.is_full or not found.size:
            return
        while self._runs and self._runs[-1].size <= found.size:
            found = np.sort(np.concatenate((self._runs.pop(), found)))
        self._runs.append(found)
