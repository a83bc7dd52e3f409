"""Splits a corpus into training and validation documents, by hashes that depend on nothing else.

A whole-text file is held out if the hash of its name is below the fraction, and a record of a
record file if the hash of its text is, so that no copy of a training record is held out.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xftrain.data.corpus.files import Document, SourceFile, blocks_of, open_listed, unreadable_error
from xftrain.data.corpus.formats import decompressed, format_of
from xftrain.utils.printable import one_line

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

log = logging.getLogger(__name__)

HASH_RANGE = 1 << 64


def split_documents(
    files: Sequence[SourceFile], val_fraction: float
) -> dict[Split, list[Document]]:
    """Splits files by a hash of their names, or a single file into its beginning and its end.

    A file is held out if its hash is below the fraction. This does not depend on other files, so a
    file stays in its split if others are added or removed. If no hash is below the fraction, the
    file with the lowest hash is held out; if all are, the file with the highest hash is trained on.
    Only that file may change its split later.
    """
    if len(files) == 1:
        (file,) = files
        return _cut_in_two(file, val_fraction)
    by_share = sorted(files, key=lambda file: _name_fraction(file.name))
    num_below = sum(_name_fraction(file.name) < val_fraction for file in files)
    if num_below in (0, len(files)):
        log.info(
            "data.val_fraction: %s of the files has a hash below %g, so %s is %s nonetheless; it "
            "changes sides if a file that belongs there is added",
            "none" if num_below == 0 else "each",
            val_fraction,
            one_line(by_share[0 if num_below == 0 else -1].name),
            "held out" if num_below == 0 else "trained on",
        )
    held_out = set(by_share[: min(max(num_below, 1), len(files) - 1)])
    documents: dict[Split, list[Document]] = {"train": [], "val": []}
    for file in files:
        split: Split = "val" if file in held_out else "train"
        documents[split].append(whole_document(file))
    return documents


def whole_document(file: SourceFile) -> Document:
    """The document of a whole-text file."""
    compression = format_of(file.name).compression
    return Document(file.path, 0, None if compression else file.size, compression)


def name_hash(name: str) -> int:
    """A number below `HASH_RANGE` that depends only on the name."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")


def text_hash(text: bytes) -> int:
    """A number below `HASH_RANGE` that depends only on the text of a record."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def threshold_of(val_fraction: float) -> int:
    """The number below which a hash is that of a document that is held out."""
    return round(val_fraction * HASH_RANGE)


def _name_fraction(name: str) -> float:
    return name_hash(name) / HASH_RANGE


def _cut_in_two(file: SourceFile, val_fraction: float) -> dict[Split, list[Document]]:
    whole = whole_document(file)
    size = _text_size(file) if whole.compression else file.size
    cut = _character_boundary(whole, size - round(size * val_fraction))
    return {
        "train": [Document(file.path, 0, cut, whole.compression)],
        "val": [Document(file.path, cut, whole.end, whole.compression)],
    }


def _text_size(file: SourceFile) -> int:
    with open_listed(file.path) as opened:
        stream = decompressed(opened, format_of(file.name).compression)
        return sum(map(len, blocks_of(stream, None, 0, file.path)))


def _character_boundary(document: Document, position: int) -> int:
    path: Path = document.path
    try:
        with open_listed(path) as file:
            stream = decompressed(file, document.compression)
            if document.compression is None:
                stream.seek(position)
            else:
                sum(map(len, blocks_of(stream, position, 0, path)))
            following = stream.read(4)
    except OSError as error:
        raise unreadable_error(path, error) from error
    # Bytes 10xxxxxx continue a character; at most three of them follow its first byte.
    while following and following[0] & 0xC0 == 0x80:
        following, position = following[1:], position + 1
    return position
