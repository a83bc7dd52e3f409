"""The format and the compression of a file of a corpus, by its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any, Literal, Protocol, cast

import zstandard

Kind = Literal["text", "jsonl", "csv", "parquet", "arrow"]
Compression = Literal["gz", "zst", "xz", "bz2"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".xz": "xz", ".bz2": "bz2"}
# Decompression needs as much memory as the window, and a frame may ask for 3.75 TiB. The levels of
# zstd and xz need at most 128 MiB and 64 MiB.
MAX_WINDOW_MIB = 128
_WINDOW_BYTES = MAX_WINDOW_MIB << 20
_XZ_BYTES = _WINDOW_BYTES + (8 << 20)  # the window and the rest of the decompressor
# Decompressed at a time: zstd can make 32 MiB of 1 KiB.
_BLOCK_BYTES = 1 << 10
_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Format:
    """How a file holds its documents.

    Attributes:
        kind: `text` is one document; the others hold a document in each record.
        compression: None if the file is not compressed.
        delimiter: what separates the columns of a CSV file.
    """

    kind: Kind
    compression: Compression | None = None
    delimiter: str = ","


def format_of(name: str) -> Format:
    """The format that a file's name says: `a.jsonl.zst` is JSON lines, compressed."""
    path = PurePath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    delimiter = "\t" if path.suffix == ".tsv" else ","
    return Format(_KINDS.get(path.suffix, "text"), compression, delimiter)


def decompressed(file: IO[bytes], compression: Compression | None) -> IO[bytes]:
    """The content of a file as a stream, which is read in bounded memory.

    Reading it raises one of `damaged_errors` where the content is damaged or cut off.
    """
    if compression is None:
        return file
    if compression == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if compression == "bz2":
        return cast(IO[bytes], bz2.BZ2File(file))
    new_frame = _new_xz_stream if compression == "xz" else _new_zstd_frame
    return io.BufferedReader(_Frames(file, new_frame), _READ_BYTES)


class LargeWindowError(ValueError):
    """A file needs more memory to be decompressed than `MAX_WINDOW_MIB`."""


class _Frame(Protocol):
    """A decompressor of one frame of zstd, or of one stream of xz."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, /) -> bytes: ...


class _Frames(io.RawIOBase):
    """The content of all frames of a file, in bounded memory.

    The readers of `zstandard` and `lzma` have no such bound, and take a zstd file that is cut off,
    or an xz file with padding before its second stream, as whole.
    """

    def __init__(self, file: IO[bytes], new_frame: Callable[[], _Frame]) -> None:
        self._file, self._new_frame = file, new_frame
        self._frame: _Frame | None = None
        self._compressed, self._at = memoryview(b""), 0
        self._content = memoryview(b"")
        self._error: Exception | None = None  # raised when what comes before it has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._error is not None:
            raise self._error
        size = 0
        while size < len(buffer):
            try:
                if not self._content and not self._decompress():
                    break
            except damaged_errors() as error:
                if not size:
                    raise
                self._error = error
                break
            part = self._content[: len(buffer) - size]
            buffer[size : size + len(part)] = part
            size += len(part)
            self._content = self._content[len(part) :]
        return size

    def _decompress(self) -> bool:
        """Makes more of the content; false at the end."""
        while not self._content:
            block: bytes | memoryview = self._compressed[self._at : self._at + _BLOCK_BYTES]
            if not block:
                self._compressed, self._at = memoryview(self._file.read(_READ_BYTES)), 0
                if self._compressed:
                    continue
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return False
            self._at += len(block)
            if self._frame is None:
                if self._new_frame is _new_xz_stream:
                    block = bytes(block).lstrip(b"\0")  # padding between streams
                    if not block:
                        continue
                self._frame = self._new_frame()
            self._content = memoryview(_decompressed_block(self._frame, block))
            if self._frame.eof:
                self._at -= len(self._frame.unused_data)
                self._frame = None
        return True


def _decompressed_block(frame: _Frame, block: bytes | memoryview) -> bytes:
    try:
        return frame.decompress(block)
    except (lzma.LZMAError, zstandard.ZstdError) as error:
        if "memory" in str(error).lower():  # of a limit, not of the system
            raise LargeWindowError(f"a window of more than {MAX_WINDOW_MIB} MiB") from error
        raise


def _new_zstd_frame() -> _Frame:
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()


def _new_xz_stream() -> _Frame:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_BYTES)


def damaged_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or cut-off file raises."""
    return (EOFError, OSError, LargeWindowError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
