"""What a checkpoint file declares is compared with the file before anything is allocated for it."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.runs import last, run
from xftrain.checkpoint.file import checked_content, read_checkpoint
from xftrain.checkpoint.file_format import described_content
from xftrain.checkpoint.newest import checkpoint_to_load, newest_save
from xftrain.checkpoint.plain_values import NotPlain
from xftrain.errors import ConfigError
from xftrain.utils.files import open_plain


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return last(run_dir)


@pytest.fixture(autouse=True)
def _no_more_memory_than_the_file_has():
    """Allocations of more than 1 GiB fail; each of these files asks for more, or for ever."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rewritten(path: Path, pickled: bytes | None = None, **entries: Any) -> None:
    """The archive again, some of its entries with other content or another way to be stored."""
    with zipfile.ZipFile(path) as old:
        held = {name: old.read(name) for name in old.namelist()}
    if pickled is not None:
        held["archive/data.pkl"] = pickled
    with zipfile.ZipFile(path, "w", entries.get("how", zipfile.ZIP_STORED)) as new:
        for name, value in held.items():
            new.writestr(name, value)
        for name, value in entries.get("more", {}).items():
            new.writestr(name, value)


def check_refused(path: Path, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_checkpoint(path)
    said = str(refused.value)
    assert said.startswith(f"ckpt={path} ") and said.endswith(".") and "\n" not in said
    assert why in said, said


# ---- the archive


def _compressed(path: Path) -> None:
    rewritten(path, how=zipfile.ZIP_DEFLATED)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/99", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(b"\0" * 2**22)


def _twice(path: Path) -> None:
    rewritten(path, more={"archive/DATA.PKL": pickle.dumps({}, 2)})


def _named_twice(path: Path) -> None:
    """Twice the same bytes as a name, of which Python reads one as UTF-8 and torch both alike."""
    rewritten(path, more={"archive/data/é": b"x" * 8, "archive/data/xx": b"y" * 8})
    path.write_bytes(path.read_bytes().replace(b"archive/data/xx", "archive/data/é".encode()))


def _name_with_a_nul(path: Path) -> None:
    rewritten(path, more={"archive/data/9?9": b"y" * 8})
    path.write_bytes(path.read_bytes().replace(b"archive/data/9?9", b"archive/data/9\0009"))


def _directory_of_gigabytes(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-10:-6] = struct.pack("<I", 2**31)
    path.write_bytes(held)


def _entry_larger_than_the_file(path: Path) -> None:
    held = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
        assert archive.infolist()[0].filename.endswith("data.pkl")
    held[directory + 20 : directory + 28] = struct.pack("<II", 2**30, 2**30)
    path.write_bytes(held)


def _before_the_archive(path: Path) -> None:
    path.write_bytes(b"x" * 64 + path.read_bytes())


def _after_the_archive(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"PK\5\6" + b"\0" * 18 + b"x")


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_compressed, "compressed"),
        (_bomb, "compressed"),
        (_twice, "two entries of one name"),
        (_named_twice, "no name of torch's"),
        (_name_with_a_nul, "no name of torch's"),
        (_directory_of_gigabytes, "directory is said to have"),
        (_entry_larger_than_the_file, "larger than the file has room for"),
        (_before_the_archive, "does not begin as a zip file"),
        (_after_the_archive, "does not end as a zip file"),
    ],
)
def test_an_archive_that_declares_more_than_the_file_is_refused(tmp_path, good, change, why):
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(good.read_bytes())
    change(path)
    check_refused(path, why)


# ---- the pickle


def _op(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def _text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def _call(name: str, arguments: bytes) -> bytes:
    return _op(b"c", name.replace(" ", "\n").encode(), b"\n", arguments, b"R")


BILLION = b"\x8a\x05" + (10**10).to_bytes(5, "little")  # an integer
STORAGE = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
# one list twice in the next, 60 times
LAUGHS = b"]q\x00" + b"".join(
    b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e" for n in range(1, 60)
)
PICKLES = {
    "an array of any size": _call("__builtin__ bytearray", BILLION + b"\x85"),
    "a tensor of any size": _call("torch Tensor", BILLION + b"\x85"),
    "a tensor type": _call("torch FloatTensor", BILLION + b"\x85"),
    "a sparse tensor": _call("torch._utils _rebuild_sparse_tensor", b")"),
    "a quantized tensor": _call("torch._utils _rebuild_qtensor", b")"),
    "a meta tensor": _call("torch._utils _rebuild_meta_tensor_no_storage", b")"),
    "a subclass": _call("torch._tensor _rebuild_from_type_v2", b")"),
    "a function": _call("posix system", _text("true") + b"\x85"),
    "a codec": _call("_codecs encode", _text("x") + _text("idna") + b"\x86"),
    "a new object": _op(b"ctorch\nTensor\n", BILLION + b"\x85", b"\x81"),
    "attributes": _op(b"ccollections\nOrderedDict\n)R}", _text("items"), b"Ksb"),
    "hash of a deep tuple": _op(b"}", b")" + b"\x85" * 100_000, b"K\x01s"),
    "set of a deep tuple": _call("__builtin__ set", b"](" + b")" + b"\x85" * 100_000 + b"e\x85"),
    "a list within a list, deep": _op(b"]" * 100_000, b"a" * 99_999),
    "a list within itself": _op(b"]q\x00h\x00a"),
    "a billion laughs": _op(LAUGHS),
    "text of any length": _op(b"X\xff\xff\xff\x7fabc"),
    "a long number": _op(b"\x8b\xff\xff\xff\x7fabc"),
    "memo of any size": _op(b"Nr\xff\xff\xff\xff", b"j\xff\xff\xff\x0f"),
    "an empty stack": _op(b"0"),
    "no end": b"\x80\x02N",
    "another protocol": pickle.dumps({"a": {1, 2}}, 4),
    "storage larger than it is": _op(STORAGE + BILLION + b"tQ"),
    "storage that is not there": _op(
        STORAGE.replace(b"\x01\0\0\x000", b"\x02\0\0\x00xy") + b"K\x01tQ"
    ),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_of_anything_else_is_refused(tmp_path, good, kind):
    path = tmp_path / "checkpoints" / "hostile.ckpt"
    path.parent.mkdir()
    path.write_bytes(good.read_bytes())
    rewritten(path, PICKLES[kind])
    with open_plain(path) as file, suppress(NotPlain):
        described_content(file)  # nothing else is raised

    assert newest_save(tmp_path) == 0
    check_refused(path, "cannot be read" if kind != "memo of any size" else "no checkpoint")


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("name", ["torch Size", "__builtin__ set"])
def test_a_text_is_not_taken_apart_into_its_characters(tmp_path, good, name):
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(good.read_bytes())
    rewritten(path, _call(name, _text("12") + b"\x85"))
    with open_plain(path) as file, pytest.raises(NotPlain, match="torch.save does not write"):
        described_content(file)


@given(st.binary(max_size=60), st.integers(0, 7000), st.booleans())
def test_whatever_a_file_holds_ends_in_a_sentence(good, tmp_path_factory, noise, at, in_pickle):
    run_dir = tmp_path_factory.mktemp("noise")
    path = run_dir / "checkpoints" / "hostile.ckpt"
    path.parent.mkdir()
    held = good.read_bytes()
    path.write_bytes(held)
    if in_pickle:
        with zipfile.ZipFile(path) as archive:
            held = archive.read("archive/data.pkl")
        rewritten(path, held[:at] + noise + held[at + len(noise) :])
    else:
        path.write_bytes(held[: len(held) - at] + noise + held[len(held) - at + len(noise) :])
    assert newest_save(run_dir) >= 0
    try:
        read_checkpoint(path)
    except ConfigError as refused:
        assert "\n" not in str(refused)


# ---- what is no file


@pytest.mark.fault("no plain file among the checkpoints")
@pytest.mark.parametrize(
    "kind", ["fifo", "folder", "socket", "link", "dangling", "device", "circle", "chain"]
)
def test_what_is_no_plain_file_is_passed_over_by_name(tmp_path, monkeypatch, good, caplog, kind):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "previous.ckpt").write_bytes(good.read_bytes())
    place = folder / "last.ckpt"
    targets = {"link": good, "dangling": tmp_path / "nothing", "device": Path("/dev/zero")}
    # Path.resolve ended in a RuntimeError, or a RecursionError
    targets |= {"circle": place, "chain": folder / "l1"}
    for number in range(1, 3000 if kind == "chain" else 1):
        (folder / f"l{number}").symlink_to(f"l{number + 1}")
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("last.ckpt")
    else:
        place.symlink_to(targets[kind])
    assert checkpoint_to_load("auto", tmp_path) == folder / "previous.ckpt"
    assert f"skipped: ckpt={place} is " in caplog.text
    check_refused(place, "is a link" if kind in targets else "is not a file")


def test_the_file_is_not_read_whole_to_learn_its_age(tmp_path, good, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(good.read_bytes())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load"))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda *_: pytest.fail("testzip"))
    assert newest_save(tmp_path) > 10**18


def test_a_training_loop_of_any_number_of_counts_is_refused(good):
    with open_plain(good) as file:
        content = described_content(file)
    assert checked_content(content) is content
    ones = [1] * 5000
    for loops in ({"a": [ones] * 50_000}, {"a": [0] * 60_000}, {"a": [[ones] * 9000] * 9000}):
        with pytest.raises(ValueError):  # noqa: PT011 - of a class of its own
            checked_content({**content, "loops": loops})
