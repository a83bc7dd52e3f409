"""A checkpoint file is to torch what it was to the checks before torch read it."""

from __future__ import annotations

import os
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from tests.train.runs import last, run
from xftrain.checkpoint import newest
from xftrain.checkpoint.described import check_loaded
from xftrain.checkpoint.file import read_checkpoint
from xftrain.checkpoint.file_format import NotACheckpoint, described_content
from xftrain.checkpoint.plain_values import NotPlain
from xftrain.errors import ConfigError
from xftrain.utils.files import open_plain

END, END_64, LOCATOR = 22, 56, 20  # bytes of the records at the end of a zip file


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return last(run_dir)


def _refused(path: Path, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_checkpoint(path)
    assert why in str(refused.value) and "\n" not in str(refused.value)


def _rewritten(good: Path, path: Path, *more: tuple[zipfile.ZipInfo, bytes]) -> int:
    """The archive as Python's zipfile writes it, and where its directory begins."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for entry, content in more:
            new.writestr(entry, content)
    with zipfile.ZipFile(path) as archive:
        return archive.start_dir


def _hidden_archive(base: int) -> tuple[bytes, int]:
    """Another archive, to lie at `base`, and where in it a large directory's end record lies."""
    held = {"data.pkl": b"\x80\x02}X\x04\x00\x00\x00evilK\x01s.", "version": b"3\n"}
    local, entries = b"", b""
    for word, content in held.items():
        name, at = f"archive/{word}".encode(), base + len(local)
        sizes = struct.pack("<3L", zlib.crc32(content), len(content), len(content))
        local += b"PK\3\4" + struct.pack("<5H", 20, 0, 0, 0, 0) + sizes
        local += struct.pack("<2H", len(name), 0) + name + content
        entries += b"PK\1\2" + struct.pack("<6H", 20, 20, 0, 0, 0, 0) + sizes
        entries += struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, at) + name
    figures = (44, 45, 45, 0, 0, 2, 2, len(entries), base + len(local))
    return local + entries + b"PK\6\6" + struct.pack("<Q2H2L4Q", *figures), len(local + entries)


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("place", ["comment", "extra"])
def test_a_second_directory_that_torch_alone_finds_is_refused(tmp_path, good, place):
    path = tmp_path / "hostile.ckpt"
    base = _rewritten(good, path) + 30 + len("archive/data/99999")
    hidden, end_at = _hidden_archive(base)
    entry = zipfile.ZipInfo("archive/data/99999")
    _rewritten(good, path, (entry, hidden))
    held = path.read_bytes()
    assert held[base : base + len(hidden)] == hidden
    # as the last of a comment or extra field of the last entry, before the end record
    locator = b"PK\6\7" + struct.pack("<LQL", 0, base + end_at, 1)
    at = held.rindex(b"PK\1\2")
    field = {"extra": 30, "comment": 32}[place]
    changed = bytearray(held[:-END] + locator + held[-END:])
    changed[at + field : at + field + 2] = struct.pack("<H", LOCATOR)
    with zipfile.ZipFile(path) as archive:
        num_bytes = len(changed) - END - archive.start_dir
    changed[-END + 12 : -END + 16] = struct.pack("<L", num_bytes)
    path.write_bytes(changed)
    assert torch.load(path, weights_only=False) == {"evil": 1}
    with open_plain(path) as file, pytest.raises(NotACheckpoint):
        described_content(file)
    _refused(path, "it has a second directory")


def _comment(held: bytearray, at: int) -> None:
    held[at + 32 : at + 34] = b"\1\0"
    held[-98:-98] = b"x"


def _extra(held: bytearray, at: int) -> None:
    held[at + 30 : at + 32] = b"\5\0"
    held[-98:-98] = b"FB\1\0x"


def _folder(held: bytearray, at: int) -> None:
    held[at + 38] = 0x10


def _short_count(held: bytearray, at: int) -> None:
    for place, kind in ((-98 + 24, "<2Q"), (-END + 8, "<2H")):
        counts = struct.unpack_from(kind, held, len(held) + place)
        struct.pack_into(kind, held, len(held) + place, *(n - 1 for n in counts))


def _other_start(held: bytearray, at: int) -> None:
    """The directory's place as torch reads it, while Python goes by where the directory ends."""
    for place, kind in ((-98 + 48, "<Q"), (-END + 16, "<L")):
        (start,) = struct.unpack_from(kind, held, len(held) + place)
        struct.pack_into(kind, held, len(held) + place, start - 46)


def _unlike(held: bytearray, at: int) -> None:
    held[-END + 8] ^= 1


def _far_away(held: bytearray, at: int) -> None:
    held[-98:-98] = b"x" * 7


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_comment, "more than torch writes"),
        (_extra, "more than torch writes"),
        (_folder, "more than torch writes"),
        (_short_count, "is said to have"),
        (_other_start, "its directory is not at its end"),
        (_unlike, "its directory ends in two ways"),
        (_far_away, "it has a second directory"),
    ],
)
def test_a_directory_that_two_readers_may_read_differently_is_refused(tmp_path, good, change, why):
    path = tmp_path / "hostile.ckpt"
    held = bytearray(good.read_bytes())
    length, at = len(held), held.rindex(b"PK\1\2")
    change(held, at)
    if change in (_comment, _extra):  # all else fits
        grown = len(held) - length
        for place, kind in ((-98 + 40, "<Q"), (-END + 12, "<L")):
            (size,) = struct.unpack_from(kind, held, len(held) + place)
            struct.pack_into(kind, held, len(held) + place, size + grown)
        (start,) = struct.unpack_from("<Q", held, len(held) - END - LOCATOR + 8)
        struct.pack_into("<Q", held, len(held) - END - LOCATOR + 8, start + grown)
    path.write_bytes(held)
    _refused(path, why)


class _WithoutZeros:
    """A file that leaves a hole in the place of large records."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, content: Any) -> int:
        if len(content) > 1 << 20:
            self._file.seek(len(content), os.SEEK_CUR)
        else:
            self._file.write(content)
        return len(content)

    def flush(self) -> None:
        self._file.flush()


def test_a_file_of_more_than_4_gib_has_what_torch_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("xftrain.checkpoint.file_format.refuse_holes", lambda *_: None)
    monkeypatch.setattr("torch.serialization.get_crc32_options", lambda: False)  # it takes 3 s
    monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda *_: None)
    with (tmp_path / "large").open("wb") as file:
        saved = {"a": torch.empty((1 << 32) + 7, dtype=torch.uint8), "b": torch.ones(3)}
        torch.save(saved, _WithoutZeros(file))
    with open_plain(tmp_path / "large") as file:
        assert described_content(file)["a"].num_bytes == (1 << 32) + 7


LOADED = {
    "another weight": {"state_dict": {"other": torch.zeros(2)}},
    "another shape": {"state_dict": {"weight": torch.zeros(3)}},
    "another dtype": {"state_dict": {"weight": torch.zeros(2, dtype=torch.int32)}},
    "no tensor": {"state_dict": {"weight": [0.0, 0.0]}},
    "another number": {"steps": [1, 2, 4]},
    "a flag": {"flag": 1},
    "a key more": {"more": None},
    "a longer list": {"steps": [1, 2, 3, 4]},
}
PLAIN: dict[str, Any] = {
    "state_dict": {"weight": torch.zeros(2)},
    "steps": [1, 2, 3],
    "flag": True,
    "others": (float("nan"), torch.Size([2]), {1, 2}, b"a", None, "a"),
    "kinds": [torch.float32, torch.device("cpu"), torch.nn.Parameter(torch.zeros(1))],
}


@pytest.mark.parametrize("kind", LOADED)
def test_what_torch_loads_is_compared_with_what_was_checked(tmp_path, kind):
    torch.save(PLAIN, tmp_path / "file")
    with open_plain(tmp_path / "file") as file:
        described = described_content(file)
    check_loaded(PLAIN, described)
    with pytest.raises(NotPlain, match="torch reads something else"):
        check_loaded({**PLAIN, **LOADED[kind]}, described)


def test_it_is_compared_whenever_a_checkpoint_is_read(tmp_path, good, monkeypatch):
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: {**load(*a, **k), "global_step": 7})
    _refused(good, "torch reads something else")


# ---- a file that is not on the disk


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.timeout(10)
@pytest.mark.parametrize("gib", [1, 3000])
def test_a_file_that_is_a_hole_is_refused_at_once(tmp_path, good, gib):
    path, began = tmp_path / "sparse.ckpt", time.monotonic()
    held = good.read_bytes()
    with path.open("wb") as file:
        file.write(held[:-5000])
        file.seek(gib << 30, os.SEEK_CUR)
        file.write(held[-5000:])
    _refused(path, "are stored on disk")
    assert time.monotonic() - began < 2 and newest._recency(path)[1] == 0


def test_a_copy_without_its_zeros_is_read(tmp_path, good):
    saved = read_checkpoint(good)
    saved["callbacks"]["zeros"] = torch.zeros(12 << 20)
    saved["callbacks"]["ones"] = torch.ones(4 << 20)
    torch.save(saved, tmp_path / "whole.ckpt")
    with (tmp_path / "whole.ckpt").open("rb") as whole, (tmp_path / "copy.ckpt").open("wb") as copy:
        while block := whole.read(4096):  # as `cp --sparse=always`
            copy.write(block) if block.strip(b"\0") else copy.seek(len(block), os.SEEK_CUR)
        copy.truncate()
    size = (tmp_path / "copy.ckpt").stat()
    assert size.st_blocks * 512 < size.st_size / 2
    assert read_checkpoint(tmp_path / "copy.ckpt")["callbacks"]["zeros"].shape == (12 << 20,)


def test_a_file_is_read_once_for_all_questions_and_anew_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    torch.save({"a": 1}, path)
    read = []
    monkeypatch.setattr(
        "xftrain.checkpoint.file_format.read_plain_pickle",
        lambda pickle, storages: read.append(len(pickle)),
    )
    for _ in range(3):
        with path.open("rb") as file:
            described_content(file)
    assert len(read) == 1
    torch.save({"a": 2}, path)  # of the same size
    os.utime(path, (1, 1))
    with path.open("rb") as file:
        described_content(file)
    assert len(read) == 2
