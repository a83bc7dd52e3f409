"""The format and the compression of a file of a corpus, by its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any, Literal, cast

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
# Frames of `zstd --ultra --long=31` need a window of 2 GiB, and a frame may ask for 3.75 TiB.
_ZSTD_WINDOW = 1 << 31
_BLOCK_BYTES = 1 << 18  # of compressed bytes, read at a time


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
    if compression == "xz":
        return cast(IO[bytes], lzma.LZMAFile(file))
    return io.BufferedReader(_ZstdFrames(file), _BLOCK_BYTES)


class _ZstdFrames(io.RawIOBase):
    """The content of all frames; the reader of `zstandard` takes one that is cut off as whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            if not self._compressed:
                self._compressed = self._file.read(_BLOCK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            frame = self._frame or _new_frame()
            self._content = memoryview(frame.decompress(self._compressed))
            self._compressed = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
        length = min(len(buffer), len(self._content))
        buffer[:length] = self._content[:length]
        self._content = self._content[length:]
        return length


def _new_frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


def damaged_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or cut-off file raises."""
    return (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
