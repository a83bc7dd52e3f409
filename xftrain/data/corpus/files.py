"""The files of a corpus, and the bytes of whole-text documents in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xftrain.data.corpus.formats import Compression, damaged_errors, decompressed
from xftrain.errors import RunError
from xftrain.utils.files import open_plain

PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class SourceFile:
    """A non-empty, readable, regular file.

    Attributes:
        name: its path below the folder, with slashes.
        path: its full path, without links below the folder.
        size: size in bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Document:
    """Bytes `[begin, end)` of the text of a file.

    Attributes:
        path: the file.
        begin: where the document begins in the text.
        end: where it ends; None is the end of the text.
        compression: how the file holds the text.
    """

    path: Path
    begin: int
    end: int | None
    compression: Compression | None = None


def read_pieces(document: Document) -> Iterator[bytes]:
    """The bytes of a document in bounded pieces, cut after a newline or else between characters.

    Raises:
        RunError: the file cannot be read, or has become shorter or damaged.
    """
    return cut_pieces(_read_blocks(document))


def cut_pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cuts blocks of at most `PIECE_BYTES` after a newline or else between characters."""
    rest, block = b"", b""
    for following in blocks:
        if block:
            joined = rest + block
            cut = _piece_end(joined)
            yield joined[:cut]
            rest = joined[cut:]
        block = following
    if rest or block:
        yield rest + block


def text_pieces(text: bytes) -> Iterator[bytes]:
    """The pieces of a text in memory, which are those of a file with this text."""
    if len(text) <= PIECE_BYTES:
        return iter((text,) if text else ())
    starts = range(0, len(text), PIECE_BYTES)
    return cut_pieces(text[start : start + PIECE_BYTES] for start in starts)


def _read_blocks(document: Document) -> Iterator[bytes]:
    try:
        with open_listed(document.path) as file:
            if document.compression is None:
                file.seek(document.begin)
                yield from blocks_of(file, document.end, document.begin, document.path)
                return
            stream = decompressed(file, document.compression)
            for _ in blocks_of(stream, document.begin, 0, document.path):
                pass
            yield from blocks_of(stream, document.end, document.begin, document.path)
    except damaged_errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable_error(document.path, error) from error
        raise changed_error(document.path) from error  # it was whole when its digest was computed


def blocks_of(
    stream: IO[bytes], end: int | None, begin: int, path: Path, size: int | None = None
) -> Iterator[bytes]:
    """Blocks from `begin` to `end`, of `size` bytes whatever `stream.read` returns at once.

    Raises:
        RunError: the stream ends before `end`.
    """
    size = size or PIECE_BYTES
    missing = None if end is None else end - begin
    while missing is None or missing:
        wanted = size if missing is None else min(missing, size)
        block = stream.read(wanted)
        while 0 < len(block) < wanted and (more := stream.read(wanted - len(block))):
            block += more  # a decompressor may return less
        if missing is not None:
            missing -= len(block)
        if block:
            yield block
        if len(block) < wanted:
            if missing:
                raise changed_error(path)
            return


@contextmanager
def open_listed(path: Path) -> Iterator[IO[bytes]]:
    """Opens a listed file, after checking that its path has not changed.

    Raises:
        RunError: a parent folder has become a link, which could lead anywhere.
    """
    with open_plain(path) as file:
        with suppress(FileNotFoundError):  # the system has no /proc
            if os.readlink(f"/proc/self/fd/{file.fileno()}") != str(path):
                raise changed_error(path)
        yield file


def changed_error(path: Path) -> RunError:
    """The error for a file that changed while it was read."""
    return RunError(
        f"data.path: files must not change while they are read, but under {str(path)!r} some did; "
        "run again when they no longer change."
    )


def unreadable_error(path: Path, error: OSError) -> RunError:
    """The error for a listed file that cannot be read."""
    return RunError(
        f"data.path: every listed file must stay readable, but {str(path)!r} is not "
        f"({error.strerror}); restore it or remove it, then run again."
    )


def _piece_end(block: bytes) -> int:
    newline = block.rfind(b"\n") + 1
    if newline:
        return newline
    last = len(block) - 1
    while last and block[last] & 0xC0 == 0x80:
        last -= 1
    return last or len(block)
