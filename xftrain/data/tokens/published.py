"""What is there of token files that are still being made, for a run that trains on it already."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xftrain.data.tokens.cache_folder import is_own_folder
from xftrain.data.tokens.chunks import SPLITS
from xftrain.data.tokens.shards import dtype_of, npy_header
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.utils.files import open_plain, read_plain, replace_bytes

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

# The number of tokens and of boundaries of each split, and the checksums of both, concatenated.
Sizes = Mapping[str, tuple[int, int, str]]

_NAME = "published.json"
_MOST_BYTES = 1000
_MOST = 1 << 48


def publish(folder: Path, sizes: Sizes) -> None:
    """Says how much of the token files in a folder is there and can be used."""
    if all(sizes[split][1] > 1 for split in SPLITS):  # otherwise documents may change sides
        replace_bytes(folder / _NAME, json.dumps(sizes).encode())


def withdraw(folder: Path) -> None:
    """Removes what `publish` has written."""
    (folder / _NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class Beginning:
    """The beginning of the stream of tokens of a split.

    Attributes:
        tokens: uint16 or uint32 tokens.
        boundaries: int64 positions of separators among them.
    """

    tokens: npt.NDArray[Any]
    boundaries: npt.NDArray[np.int64]


def read_sizes(folder: Path) -> Sizes:
    """What has been published.

    Raises:
        OSError, ValueError, KeyError, TypeError: nothing, or something else.
    """
    found = json.loads(read_plain(folder / _NAME, _MOST_BYTES))
    sizes: dict[str, tuple[int, int, str]] = {}
    for split in SPLITS:
        tokens, boundaries, sha256 = found[split]
        if any(type(n) is not int or not 2 <= n < _MOST for n in (tokens, boundaries)):
            raise ValueError(f"{_NAME} holds no sizes")
        sizes[split] = tokens, boundaries, sha256
    return sizes


class Verified:
    """Checks beginnings that grow against their checksums, and reads each byte of them once."""

    def __init__(self) -> None:
        self._checksums = {split: (hashlib.sha256(), hashlib.sha256()) for split in SPLITS}
        self._num_bytes = dict.fromkeys(SPLITS, (0, 0))

    def read(self, folder: Path, tokenizer: Tokenizer, sizes: Sizes) -> dict[Split, Beginning]:
        """Maps what has been published.

        Raises:
            OSError, ValueError: the files are not there, shorter or damaged, or the folder is
                another user's.
        """
        if not is_own_folder(folder):
            raise FileNotFoundError(folder)
        found, checksums = {}, {}
        for split in SPLITS:
            num_tokens, num_boundaries, sha256 = sizes[split]
            tokens = _map(folder / f"{split}.bin", dtype_of(tokenizer), num_tokens, 0)
            begin = len(npy_header((0,)))
            boundaries = _map(folder / f"{split}.npy", "<i8", num_boundaries, begin)
            found[split] = Beginning(tokens, boundaries)
            of_tokens, of_boundaries = self._checksums[split]
            checksums[split] = of_tokens.copy(), of_boundaries.copy()
            of_both = zip(
                checksums[split], (tokens, boundaries), self._num_bytes[split], strict=True
            )
            for checksum, array, num_bytes in of_both:
                checksum.update(array.data.cast("B")[num_bytes:])
            if "".join(checksum.hexdigest() for checksum in checksums[split]) != sha256:
                raise ValueError(f"{split}.bin or {split}.npy is damaged")
        for split in SPLITS:
            self._checksums[split] = checksums[split]
            self._num_bytes[split] = found[split].tokens.nbytes, found[split].boundaries.nbytes
        return found


def _map(path: Path, dtype: str, count: int, begin: int) -> npt.NDArray[Any]:
    end = begin + count * np.dtype(dtype).itemsize
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size < end:
            raise ValueError(f"{path.name} is shorter than what is published")
        mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype, count, begin)
