"""Groups the pieces of a corpus into chunks, which are tokenized independently of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

SPLITS: tuple[Split, Split] = ("train", "val")
CHUNK_BYTES = 8 << 20
_PIECE_BYTES = 128  # what a piece costs besides its text
_SEPARATOR = 256


@dataclass
class Chunk:
    """Consecutive pieces of each split's stream.

    Attributes:
        pieces: pieces of text, and an empty piece for each separator.
        previous: the byte, or 256 for a separator, before the first piece of the training split;
            None at its beginning.
    """

    pieces: dict[Split, list[bytes]] = field(default_factory=lambda: {"train": [], "val": []})
    previous: int | None = None

    def digest(self, of_tokenizer: str) -> bytes:
        """A hash, of 32 bytes, of the chunk and of what tokenizes it."""
        checksum = hashlib.blake2b(repr((of_tokenizer, self.previous)).encode(), digest_size=32)
        for split in SPLITS:
            pieces = self.pieces[split]
            checksum.update(repr((split, list(map(len, pieces)))).encode())
            for piece in pieces:
                checksum.update(piece)
        return checksum.digest()


def chunks_of(pieces: Iterable[tuple[Split, bytes]]) -> Iterator[Chunk]:
    """Groups pieces, of which an empty one ends a document, into chunks of about `CHUNK_BYTES`."""
    chunk, size, begun = Chunk(), 0, set()
    for split, piece in pieces:
        if split not in begun:
            begun.add(split)
            chunk.pieces[split].append(b"")
        chunk.pieces[split].append(piece)
        size += len(piece) + _PIECE_BYTES
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk(previous=_last_symbol(chunk)), 0
    if any(chunk.pieces.values()):
        yield chunk


def _last_symbol(chunk: Chunk) -> int | None:
    """The last byte of the training split up to the end of a chunk, or 256 for a separator."""
    if not chunk.pieces["train"]:
        return chunk.previous
    last = chunk.pieces["train"][-1]
    return last[-1] if last else _SEPARATOR
