"""Compressed files that would take much memory, and streams that follow each other."""

from __future__ import annotations

import io
import lzma
import struct
import tracemalloc
import zlib

import pytest
import zstandard

from tests.data.corpus_formats import jsonl
from tests.data.listed import list_files
from xftrain.data.corpus.formats import LargeWindowError, decompressed, format_of
from xftrain.data.corpus.records import read_records
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.content import DigestRecord, distinct_texts

LINES = jsonl(["one", "two"])
REPEATED = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"  # 128 KiB in 4 bytes


def zst(log2_window, content=LINES):
    """A frame of one block that is not compressed, in a window of a power of two."""
    block = struct.pack("<I", len(content) << 3 | 1)[:3] + content
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log2_window - 10) << 3]) + block


def xz(log2_window, content=LINES):
    """A stream whose header asks for a window of a power of two."""
    stream = bytearray(lzma.compress(content))
    begin, size = 12, 4 * (stream[12] + 1)
    stream[begin + 4] = 2 * (log2_window - 12)
    stream[begin + size - 4 : begin + size] = struct.pack(
        "<I", zlib.crc32(stream[begin : begin + size - 4])
    )
    return bytes(stream)


MAKE = {"zst": zst, "xz": xz}


@pytest.mark.parametrize("compression", MAKE)
def test_a_window_that_the_compressors_use_is_read(compression):
    for log2_window in (20, 27):
        content = MAKE[compression](log2_window)
        assert decompressed(io.BytesIO(content), compression).read() == LINES


@pytest.mark.parametrize("compression", MAKE)
def test_a_file_that_needs_a_large_window_is_skipped_with_the_reason(compression, tmp_path):
    large = MAKE[compression](28)
    with pytest.raises(LargeWindowError, match="128 MiB"):
        decompressed(io.BytesIO(large), compression).read()
    name = f"a.jsonl.{compression}"
    skipped = Skipped()
    content = io.BytesIO(MAKE[compression](20) + large)
    found = list(read_records(content, format_of(name), "meta.text", name, skipped))
    assert found == ["one", "two"]
    (tmp_path / f"b.txt.{compression}").write_bytes(large)
    listed, _ = list_files(tmp_path, leave_out=tmp_path / "none")
    assert distinct_texts(listed, DigestRecord(tmp_path / "none" / "record"), skipped) == []
    assert str(skipped) == (
        f"2 files compressed with a window of more than 128 MiB: {name} after 2 records, "
        f"b.txt.{compression}"
    )


def test_few_bytes_that_are_much_text_are_read_in_bounded_memory():
    """A block of 256 KiB, decompressed at once, would be 8 GiB."""
    bomb = zst(17)[:6] + REPEATED * 2000
    stream = decompressed(io.BytesIO(bomb), "zst")
    tracemalloc.start()
    try:
        assert not any(stream.read(100_000))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(4096)])
def test_xz_streams_may_have_padding_between_them(padding):
    content = lzma.compress(b"one ") + padding + lzma.compress(b"two") + padding
    assert decompressed(io.BytesIO(content), "xz").read() == b"one two"


def test_what_follows_the_last_frame_is_damage():
    for compression, content in (("xz", lzma.compress(LINES)), ("zst", zstandard.compress(LINES))):
        name = f"a.jsonl.{compression}"
        skipped = Skipped()
        file = io.BytesIO(content + b"no frame begins so")
        found = list(read_records(file, format_of(name), "meta.text", name, skipped))
        assert found == ["one", "two"] and skipped == {"damaged": 1}
