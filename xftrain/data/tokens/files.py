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
import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xftrain.data.tokens.choice import TokenizerSpec
from xftrain.data.tokens.chunks import SPLITS, chunks_of
from xftrain.data.tokens.corpus import Corpus
from xftrain.data.tokens.documents import DocumentReader
from xftrain.data.tokens.faults import check_documents, log_record_faults
from xftrain.data.tokens.pool import Pool
from xftrain.data.tokens.progress import Progress
from xftrain.data.tokens.published import Sizes, publish, withdraw
from xftrain.data.tokens.sample import training_text
from xftrain.data.tokens.shards import Joined, dtype_of, read_shard, shard_path
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES, Tokenizer
from xftrain.errors import ConfigError, RunError
from xftrain.utils.files import read_plain, replace_bytes, sync

log = logging.getLogger(__name__)

SEAL = "tokenizer.seal"  # in a folder of shards, the checksum of the tokenizer's files beside it


def file_names(spec: TokenizerSpec) -> list[str]:
    """The files of a cache folder besides meta.json; no other file in it is ever opened."""
    streams = [f"{split}.{ending}" for split in SPLITS for ending in ("bin", "npy")]
    return [*streams, "bigram.npy", *spec.file_names()]


def write_token_files(
    folder: Path, shards: Path, corpus: Corpus, spec: TokenizerSpec, num_workers: int
) -> dict[str, Any]:
    """Writes all files except meta.json, and returns the counts and checksums for meta.json.

    Args:
        folder: an empty folder, for the token files.
        shards: a folder of shards, in which those of an earlier preparation are used.
        corpus: what is read.
        spec: how it is tokenized.
        num_workers: number of processes that tokenize; 0 is this one alone.

    Raises:
        ConfigError: there are no documents, or no two different ones.
        RunError: a text has changed since its digest was computed, or a process ended too early.
    """
    tokenizer = _tokenizer_of(corpus, shards, spec)
    for name, content in spec.files(tokenizer).items():
        replace_bytes(folder / name, content)
    reader = DocumentReader(corpus)
    encoder = corpus.encoder(tokenizer)
    joined = Joined(folder, dtype_of(encoder))
    _write_shards(reader, shards, encoder, joined, num_workers)
    check_documents(reader)
    if (threshold := _threshold_for_both(reader)) is not None:
        for path in [*shards.iterdir(), *folder.iterdir()]:
            path.unlink()  # also the tokenizer, whose training text has changed
        corpus = replace(corpus, threshold=threshold)
        return write_token_files(folder, shards, corpus, spec, num_workers)
    withdraw(folder)
    facts: dict[str, Any] = {
        split: {**asdict(reader.counts[split]), **found} for split, found in joined.finish().items()
    }
    log_record_faults(reader)
    facts["num_duplicates"] = reader.duplicates.count()
    facts["skipped"] = dict(reader.skipped)
    return facts


def _write_shards(
    reader: DocumentReader, shards: Path, tokenizer: Tokenizer, joined: Joined, num_workers: int
) -> None:
    """Writes the shard of each chunk that has none, and joins all of them.

    What is joined is published when the files that it is from have been read to their ends, and so
    are known not to have changed.
    """
    of_tokenizer = tokenizer.digest()
    progress = Progress(sum(file.size for file in reader.corpus.files))
    waiting: deque[tuple[Path, bytes, int]] = deque()  # chunks to be joined
    num_chunks = num_kept = 0

    def join() -> None:
        while waiting and waiting[0][0] not in pool.pending:
            path, digest, num_files = waiting.popleft()
            shard = read_shard(path, joined.dtype, digest)
            if shard is None:
                raise RunError(
                    f"data.cache_dir: a shard in {str(shards)!r} has changed since it was written; "
                    "check that disk, and run again, which makes that shard again."
                )
            joined.add(shard)
            unpublished.append((num_files, joined.sizes()))
        sizes = None
        while unpublished and unpublished[0][0] <= reader.num_files:
            sizes = unpublished.popleft()[1]
        if sizes is not None:
            publish(joined.folder, sizes)

    unpublished: deque[tuple[int, Sizes]] = deque()
    with Pool(num_workers, tokenizer) as pool:
        for chunk in chunks_of(reader.pieces()):
            digest = chunk.digest(of_tokenizer)
            path = shard_path(shards, num_chunks)
            is_new = read_shard(path, joined.dtype, digest) is None
            if is_new:
                pool.submit(path, chunk, digest)
            num_kept += not is_new
            num_chunks += 1
            waiting.append((path, digest, reader.num_files + 1))
            num_bytes = sum(counts.bytes for counts in reader.counts.values())
            progress.update(reader.position, num_bytes, pool.num_done, is_new=is_new)
            join()
        pool.finish()
        join()
    if num_kept:
        log.info("data.path: %d of %d shards were there already", num_kept, num_chunks)


def _threshold_for_both(reader: DocumentReader) -> int | None:
    """Another threshold if one split would have no document; None if both have one.

    Raises:
        ConfigError: all documents have one text.
    """
    empty = [split for split in SPLITS if not reader.counts[split].documents]
    if not empty:
        return None
    corpus = reader.corpus
    low, high = reader.hashes or (0, 0)
    if corpus.held_out or low == high:
        what = "data.val_path" if corpus.held_out and empty == ["val"] else "data.path"
        raise ConfigError(
            f"{what} must hold text for {'validation' if empty == ['val'] else 'training'}, got "
            + ("none; " if corpus.held_out else "one document alone, or copies of one; ")
            + "give more documents, or other files as data.val_path."
        )
    log.info(
        "data.val_fraction: %s of the documents has a hash below %g, so the one with the %s hash "
        "is %s nonetheless; it changes sides if a document that belongs there is added",
        *("none", corpus.val_fraction, "lowest", "held out")
        if empty == ["val"]
        else ("each", corpus.val_fraction, "highest", "trained on"),
    )
    return low + 1 if empty == ["val"] else high


def _tokenizer_of(corpus: Corpus, shards: Path, spec: TokenizerSpec) -> Tokenizer:
    """Builds the tokenizer, or reads the one that an earlier preparation has kept."""
    seal = shards / SEAL
    try:
        files = {name: read_plain(shards / name, MAX_FILE_BYTES) for name in spec.file_names()}
        if files and read_plain(seal, 100) == _seal(files):
            return spec.read(files)
    except (OSError, ValueError, KeyError):
        pass
    tokenizer = spec.build(*training_text(corpus))
    files = spec.files(tokenizer)
    for name, content in files.items():
        replace_bytes(shards / name, content)
    replace_bytes(seal, _seal(files))
    return tokenizer


def _seal(files: Mapping[str, bytes]) -> bytes:
    digests = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
    return hashlib.sha256(repr(digests).encode()).hexdigest().encode()


def write_meta(folder: Path, facts: dict[str, Any], spec: TokenizerSpec) -> None:
    """Writes meta.json: the facts, checksums of the small files, and times of the others."""
    names = file_names(spec)
    for path in [*(folder / file for file in names), folder]:
        sync(path)  # otherwise a power failure may leave a renamed folder of empty files
    small = [file for file in names if not file.endswith(".bin")]
    meta = {
        **facts,
        "sha256": {file: _sha256_of(folder / file) for file in small},
        "times_ns": {split: times_of(os.stat(folder / f"{split}.bin")) for split in SPLITS},
    }
    sealed = {"meta": meta, "sha256": hashlib.sha256(canonical_bytes(meta)).hexdigest()}
    with open(folder / "meta.json", "x", encoding="utf-8") as file:
        json.dump(sealed, file, indent=1)
    for path in (folder / "meta.json", folder):
        sync(path)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def times_of(status: os.stat_result) -> tuple[int, int]:
    """The mtime and ctime of a file in nanoseconds; no copy has the same ones."""
    return status.st_mtime_ns, status.st_ctime_ns


def canonical_bytes(meta: dict[str, Any]) -> bytes:
    """The bytes over which the checksum of meta.json is computed."""
    return json.dumps(meta, sort_keys=True).encode()
