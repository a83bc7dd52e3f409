"""Shard files: the tokens of one chunk, written whole or not at all, and joined at the end.

A shard begins with a format, the digest of its chunk, the SHA-256 of the rest, and four counts.
Then come the tokens of both splits, the places of their separators, and the byte-bigram counts.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xftrain.data.tokens.bigram import NUM_SYMBOLS, BigramCounts
from xftrain.data.tokens.chunks import CHUNK_BYTES, SPLITS, Chunk
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.utils.files import open_plain, replacing

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

_FORMAT = b"xftrain shard 1\n"
_HEADER = struct.Struct("<16s32s32s4q")
_BIGRAM_BYTES = 4 * NUM_SYMBOLS**2
# A shard has at most this many bytes for each token; a chunk with 128 bytes a piece is the largest.
_MAX_BYTES = 64 * CHUNK_BYTES


def dtype_of(tokenizer: Tokenizer) -> str:
    """The dtype in which tokens are stored."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def shard_path(folder: Path, number: int) -> Path:
    """The path of a shard by the number of its chunk."""
    return folder / f"{number:08}.shard"


def write_shard(path: Path, chunk: Chunk, tokenizer: Tokenizer, digest: bytes) -> None:
    """Tokenizes a chunk, and writes its shard whole or not at all."""
    counts = BigramCounts(chunk.previous)
    tokens, boundaries = [], []
    for split in SPLITS:
        pieces = iter(chunk.pieces[split])
        found, places = _encode(
            counts.count_pieces(pieces) if split == "train" else pieces,
            tokenizer,
            continues=chunk.continues == split,
        )
        tokens.append(found)
        boundaries.append(places)
    bigram = counts.counts.astype("<u4")
    arrays: list[npt.NDArray[Any]] = [*tokens, *boundaries, bigram]
    parts = [array.data.cast("B") for array in arrays if array.size]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    sizes = [array.size for array in (*tokens, *boundaries)]
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(_HEADER.pack(_FORMAT, digest, checksum.digest(), *sizes))
        for part in parts:
            file.write(part)


def _encode(
    pieces: Iterator[bytes], tokenizer: Tokenizer, *, continues: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The tokens of pieces, and the places of separators among them."""
    dtype = dtype_of(tokenizer)
    parts: list[npt.NDArray[Any]] = [np.zeros(0, dtype)]
    places, num_tokens = [], 0
    for tokens in tokenizer.encode_pieces(pieces, continues=continues):
        if tokens[0] == tokenizer.separator:
            places.append(num_tokens)
        num_tokens += tokens.size
        parts.append(tokens.astype(dtype))
    return np.concatenate(parts), np.array(places, dtype="<i8")


@dataclass(frozen=True)
class Shard:
    """The content of a shard file.

    Attributes:
        tokens: the tokens of each split.
        boundaries: the places of separators among them.
        bigram_counts: byte-bigram counts of the training text.
    """

    tokens: dict[Split, npt.NDArray[Any]]
    boundaries: dict[Split, npt.NDArray[np.int64]]
    bigram_counts: npt.NDArray[np.uint32]


def read_shard(path: Path, dtype: str, digest: bytes) -> Shard | None:
    """The content of a shard; None if it is missing, damaged, or of another chunk."""
    try:
        with open_plain(path) as file:
            begin = file.read(_HEADER.size)
            if len(begin) != _HEADER.size:
                return None
            form, found, sha256, *sizes = _HEADER.unpack(begin)
            if form != _FORMAT or found != digest or min(sizes) < 0:
                return None
            itemsize = np.dtype(dtype).itemsize
            num_bytes = [sizes[0] * itemsize, sizes[1] * itemsize, sizes[2] * 8, sizes[3] * 8]
            size = sum(num_bytes) + _BIGRAM_BYTES
            if size > _MAX_BYTES or os.fstat(file.fileno()).st_size != _HEADER.size + size:
                return None
            content = file.read(size)
    except OSError:
        return None
    if len(content) != size or hashlib.sha256(content).digest() != sha256:
        return None
    stream = io.BytesIO(content)
    arrays = [
        np.frombuffer(stream.read(size), kind)
        for size, kind in zip(num_bytes, (dtype, dtype, "<i8", "<i8"), strict=True)
    ]
    bigram = np.frombuffer(stream.read(), "<u4").reshape(NUM_SYMBOLS, NUM_SYMBOLS)
    return Shard(
        dict(zip(SPLITS, arrays[:2], strict=True)),
        dict(zip(SPLITS, arrays[2:], strict=True)),
        bigram,
    )


class Joined:
    """The token files of all shards, written in order.

    Args:
        folder: where `train.bin` and the others are made.
        dtype: dtype of the tokens.

    Attributes:
        folder: where they are made.
        dtype: dtype of the tokens.
        tokens: number of tokens of each split.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, dtype
        self.tokens = dict.fromkeys(SPLITS, 0)
        self._num_boundaries = dict.fromkeys(SPLITS, 0)
        self._checksums = {split: hashlib.sha256() for split in SPLITS}
        self._boundaries_sha256 = {split: hashlib.sha256() for split in SPLITS}
        self._bigram_counts = np.zeros((NUM_SYMBOLS, NUM_SYMBOLS), dtype="<i8")
        for split in SPLITS:
            (folder / f"{split}.bin").touch(exist_ok=False)
            with open(folder / f"{split}.npy", "xb") as file:
                file.write(bytes(len(npy_header((0,)))))

    def add(self, shard: Shard) -> None:
        """Appends a shard."""
        for split in SPLITS:
            content = shard.tokens[split].astype(self.dtype, copy=False).data
            self._checksums[split].update(content)
            with open(self.folder / f"{split}.bin", "ab") as file:
                file.write(content)
            boundaries = (shard.boundaries[split] + self.tokens[split]).astype("<i8").data
            self._boundaries_sha256[split].update(boundaries)
            with open(self.folder / f"{split}.npy", "ab") as file:
                file.write(boundaries)
            self.tokens[split] += shard.tokens[split].size
            self._num_boundaries[split] += shard.boundaries[split].size
        self._bigram_counts += shard.bigram_counts

    def sizes(self) -> dict[str, tuple[int, int, str]]:
        """The number of tokens and of boundaries of each split, and a checksum of both."""
        return {
            split: (
                self.tokens[split],
                self._num_boundaries[split],
                self._checksums[split].hexdigest() + self._boundaries_sha256[split].hexdigest(),
            )
            for split in SPLITS
        }

    def finish(self) -> dict[Split, dict[str, Any]]:
        """Completes the files; returns the counts and checksums of the token files."""
        for split in SPLITS:
            with open(self.folder / f"{split}.npy", "r+b") as file:
                file.write(npy_header((self._num_boundaries[split],)))
        with open(self.folder / "bigram.npy", "xb") as file:
            np.save(file, self._bigram_counts)
        return {
            split: {"tokens": self.tokens[split], "sha256": self._checksums[split].hexdigest()}
            for split in SPLITS
        }


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header that `numpy.save` writes for int64; of one dimension, its length is always 128."""
    header = io.BytesIO()
    facts = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()
