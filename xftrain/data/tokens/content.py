"""Classifies the files of a corpus by content: which are text, copies, or changed.

A whole-text file is text if it is valid UTF-8 without NUL bytes. Reading stops at the first NUL
byte, so a sparse file of terabytes is skipped quickly. A record file is not looked into here.

A digest of each file's content decides which token files belong to a corpus. Digests are recorded,
so that a large corpus is not read at every start; a record is used only where `change_times` proves
that the file has not changed since.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xftrain.data.corpus.files import (
    Document,
    SourceFile,
    blocks_of,
    changed_error,
    open_listed,
    unreadable_error,
)
from xftrain.data.corpus.formats import (
    Format,
    LargeWindowError,
    damaged_errors,
    decompressed,
    format_of,
)
from xftrain.data.corpus.skipped import LARGE_WINDOW, Skipped
from xftrain.data.tokens.cache_folder import is_owner
from xftrain.utils.change_times import has_change_times, is_settled
from xftrain.utils.files import open_plain, replacing

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_KEY_BYTES, _SHA256_BYTES = 16, 32
_ENTRY_BYTES = _KEY_BYTES + _SHA256_BYTES
MAX_RECORDED_FILES = 100_000  # of a record, in addition to those of a larger corpus
# In place of a digest; the last two are of compressed text that cannot be decompressed.
_NOT_TEXT, _DAMAGED, _LARGE_WINDOW = (
    bytes(_SHA256_BYTES - 1) + end for end in (b"\0", b"\1", b"\2")
)
_REASONS = {
    _NOT_TEXT: "binary",
    _DAMAGED: "damaged",
    _LARGE_WINDOW: LARGE_WINDOW,
    hashlib.sha256().digest(): "empty",  # compressed text
}
_LOGGED_BYTES = 1 << 30  # the log reports it if more was read again


@dataclass(frozen=True)
class TextFile(SourceFile):
    """A file that is text.

    Attributes:
        sha256: digest of its text, or of the bytes of a record file.
    """

    sha256: bytes

    @property
    def has_records(self) -> bool:
        """Whether it holds a document in each record."""
        return format_of(self.name).kind != "text"

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are one document."""
        return format_of(self.name) == Format("text")


def distinct_texts(
    files: Iterable[SourceFile],
    record: DigestRecord,
    skipped: Skipped,
    known: Collection[bytes] = (),
) -> list[TextFile]:
    """The files that are text; of several copies of one text, only the first.

    A copy is skipped, as otherwise one copy could be trained on and another held out.

    Args:
        files: the listed files, sorted by name.
        record: the digests recorded by an earlier run, which are updated.
        skipped: counts the other files.
        known: digests of texts that count as copies.

    Raises:
        RunError: a file cannot be read, or changes meanwhile.
    """
    texts: dict[bytes, TextFile] = {}
    for file in files:
        sha256 = record.digest_or_fault(file)
        if reason := _REASONS.get(sha256):
            skipped.add(reason, file.name)
        elif sha256 in texts or sha256 in known:
            skipped.add("repeated", file.name)
        else:
            texts[sha256] = TextFile(file.name, file.path, file.size, sha256)
    return list(texts.values())


class DigestRecord:
    """The recorded digests of a corpus's files, so that the next run need not read them.

    The file belongs to one user, and holds a SHA-256 of the rest and then, for each file of the
    corpus, a hash of the facts about it and the SHA-256 of its content.

    Args:
        path: the file; one that is missing, damaged, too large or another user's counts as empty.
        max_files: maximum number of digests.
    """

    def __init__(self, path: Path, max_files: int = MAX_RECORDED_FILES) -> None:
        self._path = path
        self._recorded = _read(path, _SHA256_BYTES + max_files * _ENTRY_BYTES)
        self._current: dict[bytes, bytes] = {}
        self._num_bytes = 0  # read again, possibly although nothing has changed
        self._is_reliable: dict[int, bool] = {}  # by device

    def digest_of(self, file: SourceFile) -> bytes | None:
        """The SHA-256 of a file's content; None if it is not text.

        Raises:
            RunError: the file cannot be read, or changes meanwhile.
        """
        found = self.digest_or_fault(file)
        return None if found in (_NOT_TEXT, _DAMAGED, _LARGE_WINDOW) else found

    def digest_or_fault(self, file: SourceFile) -> bytes:
        """The SHA-256 of a file's content, or a key of `_REASONS`.

        Raises:
            RunError: the file cannot be read, or changes meanwhile.
        """
        try:
            # opened before fstat, since NFS then asks the server for current values
            with open_listed(file.path) as stream:
                return self._digest_of(file, stream)
        except OSError as error:
            raise unreadable_error(file.path, error) from error

    def _digest_of(self, file: SourceFile, stream: IO[bytes]) -> bytes:
        status = os.fstat(stream.fileno())
        is_reliable = self._is_reliable.get(status.st_dev)
        if is_reliable is None:
            is_reliable = self._is_reliable[status.st_dev] = has_change_times(stream.fileno())
        key = _key(file, status)
        found = self._recorded.get(key) if is_reliable else None
        if found is None:
            can_be_recorded = is_reliable and is_settled(status) and status.st_size == file.size
            found = _digest(file, stream)
            self._num_bytes += 0 if is_reliable else file.size
            if not can_be_recorded or _key(file, os.fstat(stream.fileno())) != key:
                return found
        self._current[key] = found
        return found

    def save(self) -> None:
        """Saves the digests that were requested, unless the record already holds exactly these."""
        if self._num_bytes > _LOGGED_BYTES:
            log.info(
                "data.path: %d MiB were read to see whether they have changed, as at every "
                "start, because their file system has no reliable change times",
                self._num_bytes >> 20,
            )
        if self._current == self._recorded:
            return
        content = b"".join(key + sha256 for key, sha256 in self._current.items())
        try:
            with replacing(self._path) as partial:
                partial.chmod(0o600)  # the digests reveal which texts the corpus holds
                partial.write_bytes(hashlib.sha256(content).digest() + content)
        except OSError as error:
            log.info(
                "data.cache_dir: %s could not be written (%s), so the text is read again at the "
                "next start to see whether it has changed",
                *(self._path, error.strerror or error),
            )


def _read(path: Path, max_bytes: int) -> dict[bytes, bytes]:
    content = b""
    with suppress(OSError), open_plain(path) as file:
        if is_owner(os.fstat(file.fileno()), path.parent):
            content = file.read(max_bytes + 1)
    checksum, entries = content[:_SHA256_BYTES], memoryview(content)[_SHA256_BYTES:]
    if len(content) > max_bytes or hashlib.sha256(entries).digest() != checksum:
        return {}
    return {
        bytes(entries[at : at + _KEY_BYTES]): bytes(entries[at + _KEY_BYTES : at + _ENTRY_BYTES])
        for at in range(0, len(entries) - _ENTRY_BYTES + 1, _ENTRY_BYTES)
    }


def _key(file: SourceFile, status: os.stat_result) -> bytes:
    """A hash of a file's path and metadata, which differs whenever the content has changed.

    The device number is left out, as it may change when the machine reboots.
    """
    facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    form = format_of(file.name)
    # an earlier version took every file for whole text
    how = () if form == Format("text") else (form.kind, form.compression)
    content = repr((os.fsencode(file.path), *facts, *how)).encode()
    return hashlib.blake2b(content, digest_size=_KEY_BYTES).digest()


def _digest(file: SourceFile, stream: IO[bytes]) -> bytes:
    """The SHA-256 of the listed bytes of a file or of its text, or a key of `_REASONS`."""
    form = format_of(file.name)
    checksum, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    end = None if form.compression and form.kind == "text" else file.size
    try:
        if end is None:
            stream = decompressed(stream, form.compression)
        for block in blocks_of(stream, end, 0, file.path, _BLOCK_BYTES):
            if form.kind == "text":
                if b"\0" in block:  # a hole of a sparse file, too
                    return _NOT_TEXT
                decoder.decode(block)
            checksum.update(block)
    except UnicodeDecodeError:
        return _NOT_TEXT
    except LargeWindowError:
        return _LARGE_WINDOW
    except damaged_errors() as error:
        if end is not None or (isinstance(error, OSError) and error.errno is not None):
            raise
        return _DAMAGED
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        if end is not None and os.fstat(stream.fileno()).st_size != end:  # cut within a character
            raise changed_error(file.path) from None
        return _NOT_TEXT
    return checksum.digest()


class ContentCheck:
    """Checks that the text that is tokenized is the text whose digest names the token files.

    Args:
        texts: all texts; each must then be read whole, from its beginning to its end.
    """

    def __init__(self, texts: Iterable[TextFile]) -> None:
        self._texts = {text.path: text for text in texts}
        self._checksums = {path: hashlib.sha256() for path in self._texts}

    def verify_pieces(self, document: Document, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the pieces of a document, which may be the first or the second part of a file.

        Raises:
            RunError: the file has changed since its digest was computed.
        """
        text, checksum = self._texts[document.path], self._checksums[document.path]
        for piece in pieces:
            checksum.update(piece)
            yield piece
        if document.end in (None, text.size) and checksum.digest() != text.sha256:
            raise changed_error(document.path)
