"""Groups the pieces of a corpus into chunks, which are tokenized independently of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xftrain.data.tokens.tokenizer import WHOLE_BYTES

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

SPLITS: tuple[Split, Split] = ("train", "val")
# A second of work: a killed process loses no more, and none waits long for the last one.
CHUNK_BYTES = 2 << 20
_PIECE_BYTES = 128  # what a piece costs besides its text
_SEPARATOR = 256


@dataclass
class Chunk:
    """Consecutive pieces of each split's stream.

    Attributes:
        pieces: pieces of text, and an empty piece for each separator.
        previous: the byte, or 256 for a separator, before the first piece of the training split;
            None at its beginning.
        continues: the split whose first piece continues a document.
    """

    pieces: dict[Split, list[bytes]] = field(default_factory=lambda: {"train": [], "val": []})
    previous: int | None = None
    continues: Split | None = None

    def digest(self, of_tokenizer: str) -> bytes:
        """A hash, of 32 bytes, of the chunk and of what tokenizes it."""
        checksum = hashlib.blake2b(digest_size=32)
        checksum.update(repr((of_tokenizer, self.previous, self.continues)).encode())
        for split in SPLITS:
            pieces = self.pieces[split]
            checksum.update(repr((split, list(map(len, pieces)))).encode())
            for piece in pieces:
                checksum.update(piece)
        return checksum.digest()


def chunks_of(pieces: Iterable[tuple[Split, bytes]]) -> Iterator[Chunk]:
    """Groups pieces, of which an empty one ends a document, into chunks of about `CHUNK_BYTES`.

    A document of at most `WHOLE_BYTES` is in one chunk, as a tokenizer encodes it as a whole.
    """
    chunk, size, begun = Chunk(), 0, set()
    document_bytes = 0
    for split, piece in pieces:
        if split not in begun:
            begun.add(split)
            chunk.pieces[split].append(b"")
        chunk.pieces[split].append(piece)
        size += len(piece) + _PIECE_BYTES
        document_bytes = document_bytes + len(piece) if piece else 0
        if size >= CHUNK_BYTES and (not piece or document_bytes > WHOLE_BYTES):
            yield chunk
            chunk, size = Chunk(previous=_last_symbol(chunk), continues=split if piece else None), 0
    if any(chunk.pieces.values()):
        yield chunk


def _last_symbol(chunk: Chunk) -> int | None:
    """The last byte of the training split up to the end of a chunk, or 256 for a separator."""
    if not chunk.pieces["train"]:
        return chunk.previous
    last = chunk.pieces["train"][-1]
    return last[-1] if last else _SEPARATOR
