"""Reads the documents of a corpus in order, each with its split, in bounded memory."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from xftrain.data.corpus.files import (
    Document,
    changed_error,
    open_listed,
    read_pieces,
    unreadable_error,
)
from xftrain.data.corpus.formats import format_of
from xftrain.data.corpus.records import read_records
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.corpus.split import name_hash, text_hash
from xftrain.data.tokens.content import ContentCheck, TextFile
from xftrain.data.tokens.corpus import Corpus
from xftrain.data.tokens.duplicates import DuplicateCounter

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

log = logging.getLogger(__name__)


@dataclass
class SplitCounts:
    """What a split has.

    Attributes:
        files: whole-text documents.
        documents: all documents.
        bytes: bytes of their text.
    """

    files: int = 0
    documents: int = 0
    bytes: int = 0


@dataclass
class DocumentReader:
    """Reads a corpus once.

    Args:
        corpus: what is read.
        limits: the number of bytes to read of each file, for a sample; by default all of it.

    Attributes:
        num_files: number of files that have been read to their ends, and had not changed.
        counts: what has been read for each split.
        skipped: the records and files that were skipped while reading.
        keys: the keys of the first record without text.
        num_records: number of records that are documents.
        duplicates: counts copies among the documents.
        hashes: the lowest and the highest hash of a document that is split by its hash.
    """

    corpus: Corpus
    limits: dict[TextFile, int] | None = None
    num_files: int = 0
    counts: dict[Split, SplitCounts] = field(
        default_factory=lambda: {"train": SplitCounts(), "val": SplitCounts()}
    )
    skipped: Skipped = field(default_factory=Skipped)
    keys: list[str] = field(default_factory=list)
    num_records: int = 0
    duplicates: DuplicateCounter = field(default_factory=DuplicateCounter)
    hashes: tuple[int, int] | None = None
    _read_bytes: int = 0
    _open: IO[bytes] | None = None

    @property
    def position(self) -> int:
        """The number of bytes of files that have been read."""
        return self._read_bytes + (self._open.tell() if self._open is not None else 0)

    def pieces(self) -> Iterator[tuple[Split, bytes]]:
        """The pieces of all documents with their split; an empty piece ends a document.

        Raises:
            RunError: a file cannot be read, or has changed since its digest was computed.
        """
        check = ContentCheck([text for text in self.corpus.files if not text.has_records])
        by_hash = self.corpus.has_records and not self.corpus.held_out
        for text, documents in self.corpus.whole_documents():
            for split, document in documents:
                self.counts[split].files += 1
                if by_hash:
                    self._note(name_hash(text.name))
                yield from self._document(split, self._whole(text, document, check))
            if text.has_records:
                yield from self._records(text)
            self._read_bytes += text.size
            self.num_files += 1

    def _whole(self, text: TextFile, document: Document, check: ContentCheck) -> Iterator[bytes]:
        if self.limits is None:
            yield from check.verify_pieces(document, read_pieces(document))
            return
        missing = self.limits[text]
        for piece in read_pieces(document):
            yield piece
            missing -= len(piece)
            if missing <= 0:
                return

    def _document(self, split: Split, pieces: Iterator[bytes]) -> Iterator[tuple[Split, bytes]]:
        counts = self.counts[split]
        for piece in pieces:
            counts.bytes += len(self.corpus.text_of(piece))
            yield split, piece
        counts.documents += 1
        yield split, b""

    def _records(self, text: TextFile) -> Iterator[tuple[Split, bytes]]:
        corpus, form = self.corpus, format_of(text.name)
        limit = None if self.limits is None else self.limits[text]
        num_bytes = 0
        try:
            with open_listed(text.path) as file:
                self._open = file
                is_table = form.kind in ("parquet", "arrow")
                hashed = None if is_table else _Hashed(file, text.size)
                source = file if hashed is None else io.BufferedReader(hashed, 1 << 18)
                for found in read_records(
                    source, form, corpus.text_key, text.name, self.skipped, self.keys
                ):
                    self.num_records += 1
                    content = found.encode()
                    if not content:
                        self.skipped.add("empty record", text.name)
                        continue
                    number = text_hash(content)
                    self.duplicates.add(number)
                    self._note(number)
                    num_bytes += len(content)
                    split = corpus.split_of_record(text, number)
                    yield from self._document(split, corpus.record_pieces(content))
                    if limit is not None and min(num_bytes, file.tell()) >= limit:
                        break
                if self.limits is None:
                    sha256 = _sha256_of(file, text.size) if hashed is None else hashed.finish()
                    if sha256 != text.sha256:
                        raise changed_error(text.path)
        except OSError as error:
            raise unreadable_error(text.path, error) from error
        finally:
            self._open = None

    def _note(self, number: int) -> None:
        low, high = self.hashes or (number, number)
        self.hashes = min(low, number), max(high, number)


class _Hashed(io.RawIOBase):
    """The first bytes of a file, whose SHA-256 is computed while they are read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._missing, self._checksum = file, size, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(min(len(buffer), self._missing))
        self._missing -= len(block)
        self._checksum.update(block)
        buffer[: len(block)] = block
        return len(block)

    def finish(self) -> bytes:
        """Reads the rest; returns the SHA-256."""
        block = bytearray(1 << 20)
        while self.readinto(memoryview(block)):
            pass
        return self._checksum.digest()


def _sha256_of(file: IO[bytes], size: int) -> bytes:
    file.seek(0)
    return _Hashed(file, size).finish()
