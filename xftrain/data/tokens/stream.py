"""Reads the cache folder of a corpus, whose content may come from anyone.

Only files with fixed names are opened, and none through a link. Sizes in meta.json are checked
against the corpus before memory is allocated for them, and nothing is unpickled or executed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.bigram import NUM_SYMBOLS
from xftrain.data.tokens.choice import TokenizerSpec
from xftrain.data.tokens.chunks import SPLITS
from xftrain.data.tokens.content import TextFile
from xftrain.data.tokens.files import canonical_bytes, times_of
from xftrain.data.tokens.shards import dtype_of, npy_header
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES, Tokenizer
from xftrain.utils.files import open_plain, read_json, read_plain
from xftrain.utils.printable import shortened

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

log = logging.getLogger(__name__)

_META_BYTES = 1 << 20
_MAX_COUNT = 1 << 48
_REASON_CHARACTERS = 100
_BLOCK = 1 << 20  # tokens or boundaries that are checked at a time
# Up to this size all tokens are checked at each start, in 40 ms if the files are cached in memory.
# For any size, each batch is checked too.
_CHECKED_BYTES = 1 << 30


@dataclass(frozen=True)
class SplitFacts:
    """The facts about a split in meta.json.

    Attributes:
        files: number of whole-text files; 1 for a part of a single file.
        documents: number of documents.
        bytes: number of bytes of text.
        tokens: number of tokens, with separators before and after each file.
        sha256: checksum of the tokens.
        times_ns: times of the file's last modification and change (mtime, ctime) after the tokens
            were written, in nanoseconds.
    """

    files: int
    documents: int
    bytes: int
    tokens: int
    sha256: str
    times_ns: tuple[int, int]


@dataclass(frozen=True)
class Meta:
    """The checked content of meta.json.

    Attributes:
        splits: facts about each split.
        sha256: checksums of the small files, by name.
        num_duplicates: number of documents that are copies of earlier ones.
        skipped: number of skipped records and of files that were found damaged, by reason.
    """

    splits: dict[Split, SplitFacts]
    sha256: dict[str, str]
    num_duplicates: int
    skipped: Skipped


class TokenStream:
    """One split's tokens, memory-mapped.

    Args:
        folder: folder of the token files.
        split: the split.
        dtype: dtype in which tokens are stored.
        num_tokens: expected number of tokens.
        num_documents: expected number of documents.
        boundaries_sha256: checksum of the file of the boundaries.

    Attributes:
        tokens: uint16 or uint32, a separator before and after every document.
        boundaries: int64 positions of the separators.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        dtype: str,
        num_tokens: int,
        num_documents: int,
        boundaries_sha256: str,
    ) -> None:
        self._arguments = (folder, split, dtype, num_tokens, num_documents, boundaries_sha256)
        with open_plain(folder / f"{split}.bin") as file:
            self.times_ns = times_of(os.fstat(file.fileno()))
            if os.fstat(file.fileno()).st_size != num_tokens * np.dtype(dtype).itemsize:
                raise ValueError(f"{split}.bin does not hold {num_tokens} tokens")
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.tokens = np.frombuffer(self._mapped, dtype)
        self.boundaries = _map_boundaries(
            folder / f"{split}.npy", num_documents + 1, boundaries_sha256
        )
        is_whole = self.boundaries[0] == 0 and self.boundaries[-1] == num_tokens - 1
        if not is_whole or not _is_increasing(self.boundaries):
            raise ValueError(f"{split}.npy has boundaries out of order")

    def __reduce__(self) -> tuple[type[TokenStream], tuple[Any, ...]]:
        return TokenStream, self._arguments  # a worker process maps the file, not a copy of it

    def check(self, tokenizer: Tokenizer, facts: SplitFacts) -> None:
        """Raises ValueError if the tokens are not those that were written."""
        if self.times_ns != facts.times_ns:  # copied or changed
            log.info("data.cache_dir: checking the tokens of a copied or changed %s", self.name)
            checksum = hashlib.sha256()
            for block in self._blocks():
                checksum.update(block.data)
            if checksum.hexdigest() != facts.sha256:
                raise ValueError(f"{self.name} does not match its checksum")
        if self.tokens.nbytes > _CHECKED_BYTES:
            return
        if any(block.max() >= tokenizer.vocab_size for block in self._blocks()):
            raise ValueError(f"{self.name} has tokens outside its vocabulary")
        if any(
            (self.tokens[places] != tokenizer.separator).any()
            for places in self._blocks(self.boundaries)
        ):
            raise ValueError(f"{self.name} has documents without a separator")

    def _blocks(self, array: npt.NDArray[Any] | None = None) -> Iterator[npt.NDArray[Any]]:
        """Blocks of the tokens, or of an array of places in them.

        The pages of a block leave this process's memory when the next one is read.
        """
        array = self.tokens if array is None else array
        for begin in range(0, array.size, _BLOCK):
            yield array[begin : begin + _BLOCK]
            self._mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def name(self) -> str:
        """The name of the token file."""
        return str(self._arguments[0] / f"{self._arguments[1]}.bin")


def _map_boundaries(path: Path, num_boundaries: int, sha256: str) -> npt.NDArray[np.int64]:
    """Memory-maps boundaries, as a corpus of records may have a hundred million documents."""
    begin = npy_header((num_boundaries,))
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size != len(begin) + 8 * num_boundaries:
            raise ValueError(f"{path.name} does not hold {num_boundaries} boundaries")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[: len(begin)] != begin:
        raise ValueError(f"{path.name} is no array of {num_boundaries} integers")
    _check_sum(path.name, mapped, sha256)
    return np.frombuffer(mapped, "<i8", offset=len(begin))


def _is_increasing(boundaries: npt.NDArray[np.int64]) -> bool:
    blocks = range(0, boundaries.size, _BLOCK)
    return all(bool((np.diff(boundaries[n : n + _BLOCK + 1]) > 0).all()) for n in blocks)


def read_meta(folder: Path, files: Sequence[TextFile], spec: TokenizerSpec) -> Meta:
    """Reads what `seal` wrote, and checks its numbers against the files of the corpus.

    Raises:
        ValueError, KeyError, TypeError: it is damaged, or of another corpus.
    """
    sealed = read_json(folder / "meta.json", _META_BYTES)
    if sealed is None:
        raise ValueError("meta.json cannot be read")
    meta: dict[str, Any] = sealed["meta"]
    if sealed["sha256"] != hashlib.sha256(canonical_bytes(meta)).hexdigest():
        raise ValueError("meta.json does not match its checksum")
    if all(file.is_plain for file in files):
        most_documents, most_bytes = len(files), sum(file.size for file in files)
    else:  # nobody knows without reading them; the sizes of the token files limit both
        most_documents = most_bytes = _MAX_COUNT
    splits: dict[Split, SplitFacts] = {}
    for split in SPLITS:
        facts = meta[split]
        splits[split] = SplitFacts(
            files=_count(facts["files"], 0, len(files)),
            documents=_count(facts["documents"], 1, most_documents),
            bytes=_count(facts["bytes"], 0, most_bytes),
            tokens=_count(facts["tokens"], 2, spec.max_tokens(most_bytes, most_documents)),
            sha256=_text(facts["sha256"]),
            times_ns=_times(meta["times_ns"][split]),
        )
    sha256 = {_text(name): _text(checksum) for name, checksum in meta["sha256"].items()}
    skipped = Skipped()
    for reason, number in meta["skipped"].items():
        skipped[shortened(_text(reason), _REASON_CHARACTERS)] += _count(number, 1, _MAX_COUNT)
    return Meta(splits, sha256, _count(meta["num_duplicates"], 0, most_documents * 2), skipped)


def _count(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"meta.json has {value!r} in place of an integer from {least} to {most}")
    return value


def _times(value: Any) -> tuple[int, int]:
    mtime_ns, ctime_ns = (_count(time_ns, -(1 << 63), 1 << 63) for time_ns in value)
    return mtime_ns, ctime_ns


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("meta.json has a value that is not a string where a string is expected")
    return value


def read_tokenizer(folder: Path, spec: TokenizerSpec, meta: Meta) -> Tokenizer:
    """The vocabulary of the token files.

    Raises:
        OSError, ValueError, KeyError: it is damaged.
    """
    files = {name: read_plain(folder / name, MAX_FILE_BYTES) for name in spec.file_names()}
    for name, content in files.items():
        _check_sum(name, content, meta.sha256[name])
    return spec.read(files)


def open_stream(folder: Path, split: Split, tokenizer: Tokenizer, meta: Meta) -> TokenStream:
    """The tokens of a split, checked.

    Raises:
        OSError, ValueError, KeyError: a file is damaged, or of another corpus.
    """
    facts = meta.splits[split]
    boundaries = meta.sha256[f"{split}.npy"]
    dtype = dtype_of(tokenizer)
    stream = TokenStream(folder, split, dtype, facts.tokens, facts.documents, boundaries)
    stream.check(tokenizer, facts)
    return stream


def read_bigram_counts(folder: Path, meta: Meta) -> npt.NDArray[np.int64]:
    """Byte-bigram counts of the training text.

    Raises:
        OSError, ValueError, KeyError: the file is damaged.
    """
    shape = (NUM_SYMBOLS, NUM_SYMBOLS)
    counts = _read_npy(folder / "bigram.npy", shape, meta.sha256["bigram.npy"])
    if counts.min() < 0:
        raise ValueError("bigram.npy has negative counts")
    return counts


def _check_sum(name: str, content: bytes | mmap.mmap, sha256: str) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{name} does not match its checksum")


def _read_npy(path: Path, shape: tuple[int, ...], sha256: str) -> npt.NDArray[np.int64]:
    """The int64 array of that shape, as `numpy.save` writes it; the file does not set the size."""
    begin, num_bytes = npy_header(shape), 8 * math.prod(shape)
    content = read_plain(path, len(begin) + num_bytes)
    _check_sum(path.name, content, sha256)
    if not content.startswith(begin) or len(content) != len(begin) + num_bytes:
        raise ValueError(f"{path.name} is no array of {shape} integers")
    return np.frombuffer(content, "<i8", offset=len(begin)).reshape(shape)
