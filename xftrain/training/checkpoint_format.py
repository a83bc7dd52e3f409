"""The format of checkpoint files, checked before torch reads one: a zip archive with a pickle.

torch and Python's zipfile believe what an archive declares: a file of some megabytes may unpack to
some terabytes. torch.save compresses nothing, so here all sizes add up to the file's.
"""

from __future__ import annotations

import os
import struct
import zipfile
from typing import IO, Any

from xftrain.training.plain_pickle import read_plain_pickle

_MAX_PICKLE, _MAX_DIRECTORY = 64 << 20, 16 << 20  # bytes; some KiB for each 100 tensors
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"  # how a zip file's directory ends, and a large one's
_END_BYTES, _END_64_BYTES, _LOCATOR_BYTES = 22, 56, 20


class NotACheckpoint(ValueError):
    """No file as torch.save writes them."""


def check_sums(file: IO[bytes]) -> None:
    """Reads all of a checkpoint file and compares its checksums, at which torch does not look.

    Raises:
        NotACheckpoint: one is wrong.
    """
    with zipfile.ZipFile(file) as archive:
        if (bad := archive.testzip()) is not None:
            raise NotACheckpoint(f"wrong checksum of {bad}")


def described_content(file: IO[bytes]) -> Any:
    """What a checkpoint file holds, without a look at its weights.

    Nothing that the file names is called, and nothing larger than its directory is read.

    Args:
        file: a plain file, open to read.

    Returns:
        Plain values, and a `DescribedTensor` for each tensor.

    Raises:
        NotACheckpoint: it is no file of torch.save, or what it declares does not fit the file.
        NotPlain: it holds more than plain values and dense tensors.
        zipfile.BadZipFile: it is no zip file.
    """
    length = os.fstat(file.fileno()).st_size
    _check_directory(file, length)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_entries(entries, length)
        folder = entries[0].filename.partition("/")[0]
        sizes = {entry.filename.removeprefix(f"{folder}/"): entry.file_size for entry in entries}
        if sizes.get("data.pkl", _MAX_PICKLE) >= _MAX_PICKLE:
            raise NotACheckpoint("it has no pickle, or one that is too large")
        pickle = archive.read(f"{folder}/data.pkl")
    storages = {
        name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")
    }
    return read_plain_pickle(pickle, storages)


def _check_directory(file: IO[bytes], length: int) -> None:
    """Refuses a directory of entries that would take far more memory than the file has bytes."""
    if file.read(4) != b"PK\x03\x04":  # else torch takes it for a file of its former format
        raise NotACheckpoint("it does not begin as a zip file")
    tail = _END_BYTES + _LOCATOR_BYTES + _END_64_BYTES
    file.seek(max(0, length - tail))
    end = file.read(tail)
    if end[-_END_BYTES:][:4] != _END or end[-2:] != b"\0\0":
        raise NotACheckpoint("it does not end as a zip file")
    (num_bytes,) = struct.unpack("<I", end[-_END_BYTES:][12:16])
    if end[:4] == _END_64:
        num_bytes = max(num_bytes % 0xFFFFFFFF, *struct.unpack("<Q", end[40:48]))
    if num_bytes > min(length, _MAX_DIRECTORY):
        raise NotACheckpoint(f"its directory is said to have {num_bytes:,} bytes")


def _check_entries(entries: list[zipfile.ZipInfo], length: int) -> None:
    """Each has its own bytes of the file, and as many as it says."""
    if not entries or entries[0].header_offset:
        raise NotACheckpoint("it does not begin with its first entry")
    for entry in entries:
        # Python and torch read other names differently, and would compare different entries
        if not entry.filename.isascii() or entry.filename != entry.orig_filename:
            raise NotACheckpoint(f"its entry {entry.orig_filename!r:.100} has no name of torch's")
    names = {entry.filename.lower() for entry in entries}  # torch does not tell the cases apart
    if len(names) < len(entries):
        raise NotACheckpoint("it has two entries of one name")
    folder = entries[0].filename.partition("/")[0]
    ends = [*(entry.header_offset for entry in entries[1:]), length]
    for entry, end in zip(entries, ends, strict=True):
        is_stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not is_stored or entry.compress_size != entry.file_size:
            raise NotACheckpoint(f"its entry {entry.filename} is compressed or encrypted")
        if entry.header_offset + len(entry.filename) + entry.file_size > end:
            raise NotACheckpoint(f"its entry {entry.filename} is larger than the file has room for")
        if not entry.filename.startswith(f"{folder}/"):
            raise NotACheckpoint(f"its entry {entry.filename} is in another folder")
