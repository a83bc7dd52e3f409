"""Writes the cache folder of a corpus, which holds these files.

    meta.json       counts, sizes and checksums, itself sealed by a checksum
    train.bin       tokens, uint16 or uint32: separator, document, separator, document, separator
    train.npy       where the separators are; val.bin and val.npy likewise
    bigram.npy      byte-bigram counts of the training text
    tokenizer.json  the BPE vocabulary, in the form of `tokenizers`; not with bytes

`stream` reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xftrain.data.corpus.files import Document, read_pieces
from xftrain.data.tokens.bigram import BigramCounts
from xftrain.data.tokens.choice import TokenizerSpec
from xftrain.data.tokens.content import ContentCheck
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.interfaces import Split
from xftrain.utils.files import sync

SPLITS: tuple[Split, Split] = ("train", "val")


def file_names(spec: TokenizerSpec) -> list[str]:
    """The files of a cache folder besides meta.json; no other file in it is ever opened."""
    streams = [f"{split}.{ending}" for split in SPLITS for ending in ("bin", "npy")]
    return [*streams, "bigram.npy", *spec.file_names()]


def write_token_files(
    folder: Path,
    documents: dict[Split, list[Document]],
    spec: TokenizerSpec,
    check: ContentCheck,
) -> dict[str, Any]:
    """Writes all files except meta.json, and returns the counts and checksums for meta.json.

    Raises:
        RunError: a text has changed since its digest was computed.
    """
    text = (piece for document in documents["train"] for piece in read_pieces(document))
    num_bytes = sum(document.end - document.begin for document in documents["train"])
    tokenizer = spec.build(text, num_bytes)
    for name, content in spec.files(tokenizer).items():
        with open(folder / name, "xb") as file:
            file.write(content)
    counts = BigramCounts()
    facts: dict[str, Any] = {}
    for split in SPLITS:
        pieces = _separated(documents[split], check)
        boundaries = []
        num_tokens = 0
        checksum = hashlib.sha256()
        with open(folder / f"{split}.bin", "xb") as file:
            watched = counts.count_pieces(pieces) if split == "train" else pieces
            for tokens in tokenizer.encode_pieces(watched):
                if tokens[0] == tokenizer.separator:
                    boundaries.append(num_tokens)
                num_tokens += tokens.size
                content = tokens.astype(dtype_of(tokenizer)).tobytes()
                checksum.update(content)
                file.write(content)
        with open(folder / f"{split}.npy", "xb") as file:
            np.save(file, np.array(boundaries, dtype="<i8"))
        facts[split] = {
            "files": len(documents[split]),
            "bytes": sum(document.end - document.begin for document in documents[split]),
            "tokens": num_tokens,
            "sha256": checksum.hexdigest(),
        }
    with open(folder / "bigram.npy", "xb") as file:
        np.save(file, counts.counts.astype("<i8"))
    return facts


def _separated(documents: list[Document], check: ContentCheck) -> Iterator[bytes]:
    yield b""
    for document in documents:
        yield from check.verify_pieces(document, read_pieces(document))
        yield b""


def dtype_of(tokenizer: Tokenizer) -> str:
    """The dtype in which tokens are stored."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def write_meta(folder: Path, facts: dict[str, Any], spec: TokenizerSpec) -> None:
    """Writes meta.json: the facts, checksums of the small files, and times of the others."""
    names = file_names(spec)
    for path in [*(folder / file for file in names), folder]:
        sync(path)  # otherwise a power failure may leave a renamed folder of empty files
    small = [file for file in names if not file.endswith(".bin")]
    meta = {
        **facts,
        "sha256": {
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in small
        },
        "times_ns": {split: times_of(os.stat(folder / f"{split}.bin")) for split in SPLITS},
    }
    sealed = {"meta": meta, "sha256": hashlib.sha256(canonical_bytes(meta)).hexdigest()}
    with open(folder / "meta.json", "x", encoding="utf-8") as file:
        json.dump(sealed, file, indent=1)
    for path in (folder / "meta.json", folder):
        sync(path)


def times_of(status: os.stat_result) -> tuple[int, int]:
    """The mtime and ctime of a file in nanoseconds; no copy has the same ones."""
    return status.st_mtime_ns, status.st_ctime_ns


def canonical_bytes(meta: dict[str, Any]) -> bytes:
    """The bytes over which the checksum of meta.json is computed."""
    return json.dumps(meta, sort_keys=True).encode()
