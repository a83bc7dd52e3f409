"""The format of checkpoint files, checked before torch reads one: a zip archive with a pickle.

torch and Python's zipfile trust the sizes that an archive declares, so a file of megabytes may
unpack to terabytes. torch.save does not compress, so the checks here require that the sizes of all
entries add up to the size of the file.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any

from xftrain.checkpoint.plain_pickle import read_plain_pickle

# allowed excess of file size over allocated size: bytes, and factor
_MAX_HOLE_BYTES, _MAX_SPARSITY = 16 << 20, 8
_MAX_PICKLE, _MAX_DIRECTORY = 64 << 20, 16 << 20  # bytes; some KiB for each 100 tensors
# Signatures of the end of a zip directory: plain, zip64, and the locator of the zip64 end.
_END, _END_64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LARGE = 0xFFFFFFFF  # placeholder for a number that needs more than 32 bits
_END_BYTES, _END_64_BYTES, _LOCATOR_BYTES = 22, 56, 20


class NotACheckpoint(ValueError):
    """The file is not in the form that torch.save writes."""


def check_sums(file: IO[bytes]) -> None:
    """Reads a whole checkpoint file and verifies its checksums, which torch does not do.

    Raises:
        NotACheckpoint: a checksum is wrong.
    """
    with zipfile.ZipFile(file) as archive:
        if (bad := archive.testzip()) is not None:
            raise NotACheckpoint(f"wrong checksum of {bad}")


def described_content(file: IO[bytes]) -> Any:
    """The content of a checkpoint file, read without its weights.

    No function that the file names is called, and nothing larger than its directory is read.

    Args:
        file: a regular file, open for reading.

    Returns:
        Plain values, with a `DescribedTensor` for each tensor. The result for the last file is
        cached and must not be changed.

    Raises:
        NotACheckpoint: torch.save did not write it, or its declared sizes do not fit the file.
        NotPlain: it holds more than plain values and dense tensors.
        zipfile.BadZipFile: it is no zip file.
    """
    return _described(content_key(file))


def content_key(file: IO[bytes]) -> ContentKey:
    """The cache key of a file's content."""
    status = os.fstat(file.fileno())
    # by ctime, which cannot be set by programs
    identity = status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
    return ContentKey(file, identity)


@dataclass(frozen=True)
class ContentKey:
    """An open file, whose key is equal for every opening of the same content."""

    file: IO[bytes] = field(compare=False)
    identity: tuple[int, ...]


@lru_cache(maxsize=1)  # a run reads several parts of one file; more content may not fit into memory
def _described(key: ContentKey) -> Any:
    file = key.file
    length = os.fstat(file.fileno()).st_size
    refuse_holes(file, length)
    num_entries = _check_directory(file, length)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) != num_entries:
            raise NotACheckpoint(f"its directory is said to have {num_entries:,} entries")
        _check_entries(entries, archive.start_dir)
        folder = entries[0].filename.partition("/")[0]
        sizes = {entry.filename.removeprefix(f"{folder}/"): entry.file_size for entry in entries}
        if sizes.get("data.pkl", _MAX_PICKLE) >= _MAX_PICKLE:
            raise NotACheckpoint("it has no pickle, or one that is too large")
        pickle = archive.read(f"{folder}/data.pkl")
    storages = {
        name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")
    }
    return read_plain_pickle(pickle, storages)


def refuse_holes(file: IO[bytes], length: int) -> None:
    """Refuses a mostly sparse file, as a hole of terabytes takes no space on disk.

    Small holes are allowed, as a sparse copy turns zero moments into holes.
    """
    number, num_stored, at = file.fileno(), 0, 0
    before = os.lseek(number, 0, os.SEEK_CUR)
    try:
        while num_stored * _MAX_SPARSITY < length - _MAX_HOLE_BYTES:
            begin = os.lseek(number, at, os.SEEK_DATA)
            at = os.lseek(number, begin, os.SEEK_HOLE)
            num_stored += at - begin
    except OSError as error:
        # the rest is a hole; other errors mean that the file system reports no holes
        if error.errno == errno.ENXIO:
            raise NotACheckpoint(
                f"it has {length:,} bytes, of which {num_stored:,} are stored on disk"
            ) from None
    finally:
        os.lseek(number, before, os.SEEK_SET)


def _check_directory(file: IO[bytes], length: int) -> int:
    """The number of entries, after checking that Python and torch find the same directory.

    torch follows a locator to a second directory anywhere in the file, which Python ignores.

    Raises:
        NotACheckpoint: the directory is not directly before the end of the file, or would take far
            more memory than the file has bytes.
    """
    if file.read(4) != b"PK\x03\x04":  # else torch reads it as its old file format
        raise NotACheckpoint("it does not begin as a zip file")
    tail = _END_BYTES + _LOCATOR_BYTES + _END_64_BYTES
    file.seek(max(0, length - tail))
    end = file.read(tail)
    if end[-_END_BYTES:][:4] != _END or end[-2:] != b"\0\0":
        raise NotACheckpoint("it does not end as a zip file")
    found = struct.unpack("<4H2L", end[-_END_BYTES:][4:-2])
    ends_at, sizes = length - _END_BYTES, [found[4] % _LARGE]
    if end[:-_END_BYTES][-_LOCATOR_BYTES:][:4] == _LOCATOR:
        ends_at = length - tail
        located = struct.unpack("<LQL", end[:-_END_BYTES][-_LOCATOR_BYTES:][4:])
        if located != (0, ends_at, 1) or end[:12] != _END_64 + struct.pack("<Q", 44):
            raise NotACheckpoint("it has a second directory")
        large = struct.unpack("<2L4Q", end[16:_END_64_BYTES])
        short = tuple(map(min, large, (0xFFFF,) * 4 + (_LARGE,) * 2))
        sizes.append(large[4])
        if max(sizes) <= _MAX_DIRECTORY and short != found:
            raise NotACheckpoint("its directory ends in two ways")
        found = large
    if max(sizes) > min(length, _MAX_DIRECTORY):
        raise NotACheckpoint(f"its directory is said to have {max(sizes):,} bytes")
    disk, first_disk, num_here, num_entries, num_bytes, start = found
    if disk or first_disk or num_here != num_entries or start + num_bytes != ends_at:
        raise NotACheckpoint("its directory is not at its end")
    return int(num_entries)


def _check_entries(entries: list[zipfile.ZipInfo], end: int) -> None:
    """Checks that entries do not overlap, and that each has as many bytes as it declares.

    Args:
        entries: the directory as Python reads it.
        end: offset at which the directory begins.
    """
    if not entries or entries[0].header_offset:
        raise NotACheckpoint("it does not begin with its first entry")
    for entry in entries:
        # Python and torch decode any other name differently, and would read different entries
        if not entry.filename.isascii() or entry.filename != entry.orig_filename:
            raise NotACheckpoint(f"its entry {entry.orig_filename!r:.100} has no name of torch's")
        # torch does not read entries marked as folders, and leaves memory uninitialized
        if entry.comment or not _has_extra_of_torch(entry) or entry.is_dir() or _is_folder(entry):
            raise NotACheckpoint(f"its entry {entry.filename:.100} has more than torch writes")
    names = {entry.filename.lower() for entry in entries}  # torch ignores case
    if len(names) < len(entries):
        raise NotACheckpoint("it has two entries of one name")
    folder = entries[0].filename.partition("/")[0]
    ends = [*(entry.header_offset for entry in entries[1:]), end]
    for entry, next_at in zip(entries, ends, strict=True):
        is_stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not is_stored or entry.compress_size != entry.file_size:
            raise NotACheckpoint(f"its entry {entry.filename} is compressed or encrypted")
        if entry.header_offset + len(entry.filename) + entry.file_size > next_at:
            raise NotACheckpoint(f"its entry {entry.filename} is larger than the file has room for")
        if not entry.filename.startswith(f"{folder}/"):
            raise NotACheckpoint(f"its entry {entry.filename} is in another folder")


def _has_extra_of_torch(entry: zipfile.ZipInfo) -> bool:
    """Whether the extra field of an entry holds only sizes that need 64 bits."""
    large = [n for n in (entry.file_size, entry.compress_size, entry.header_offset) if n >= _LARGE]
    expected = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    return entry.extra == expected


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether the attributes mark the entry as a folder."""
    return bool(entry.external_attr & 0x10)
