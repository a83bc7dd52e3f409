"""Folders of models: what is written is read again, and a hostile one is refused in a sentence."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from xftrain.checkpoint.safetensors_file import SafetensorsFile
from xftrain.errors import ConfigError, RunError
from xftrain.hugging_face.folder import INDEX, read_folder, write_folder

WEIGHTS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.tensor([1.5, -2.0]).bfloat16(),
    "c": torch.zeros(0, 3),
    "d": torch.tensor(2.5, dtype=torch.float64),
    "e": torch.ones(2, 2, 2).half(),
}


def _same(found: Any) -> bool:
    return set(found) == set(WEIGHTS) and all(
        torch.equal(found[name], weight) and found[name].dtype == weight.dtype
        for name, weight in WEIGHTS.items()
    )


def test_what_is_written_is_read_again_in_one_file_or_several(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", {"x": 1}, WEIGHTS, {"tokenizer.json": "{}"})
    write_folder(tmp_path / "several", {"x": 1}, WEIGHTS, shard_bytes=50)
    names = sorted(path.name for path in (tmp_path / "several").iterdir())
    assert len(names) == 4 and names[1] == "model-00001-of-00002.safetensors"
    for name in ("one", "several"):
        found = read_folder(tmp_path / name)
        assert found.config == {"x": 1} and _same(found.weights)
        assert found.weights.shapes == {n: tuple(w.shape) for n, w in WEIGHTS.items()}
    assert _same(load_file(tmp_path / "one/model.safetensors"))
    assert (tmp_path / "one/tokenizer.json").read_text() == "{}"


def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", {}, WEIGHTS)
    with pytest.raises(ConfigError, match="path=.*empty must be a new or empty folder"):
        write_folder(tmp_path / "empty", {}, WEIGHTS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xftrain.hugging_face.folder.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        write_folder(tmp_path / "full", {}, WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def _index(**places: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))

    return change


def _file(name: str, content: str | bytes) -> Callable[[Path], Any]:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def _link(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return change


def _fifo(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


ALL = dict.fromkeys(WEIGHTS, "part.safetensors")
HOSTILE = {
    "auto_map": (_file("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'), "never run"),
    "no mapping": (_file("config.json", "[]"), "config.json cannot be read .it is no mapping"),
    "nested": (_file("config.json", "[" * 100_000), "config.json cannot be read"),
    "long number": (_file("config.json", '{"a": ' + "1" * 9999 + "}"), "cannot be read"),
    "no text": (_file("config.json", b"\xff\xfe"), "config.json cannot be read"),
    "large": (_file("config.json", b" " * ((4 << 20) + 1)), "larger than"),
    "config elsewhere": (_link("config.json"), "config.json is a link that leads out"),
    "weights elsewhere": (_link("model.safetensors"), "safetensors is a link that leads out"),
    "fifo": (_fifo, "has no file model.safetensors"),
    "pickle": (_pickle, "has no model.safetensors, but pytorch_model.bin, a pickle, which"),
    "up": (_index(**ALL | {"a": "../part.safetensors"}), "only safetensors files of the folder"),
    "absolute": (_index(**ALL | {"a": "/etc/x.safetensors"}), "only safetensors files of"),
    "bin": (_index(**ALL | {"a": "part.bin"}), "only safetensors files of the folder"),
    "escape": (_index(**ALL | {"a": "\x1b[2J.safetensors"}), r"names '\\x1b"),
    "no shard": (_index(**ALL | {"a": "other.safetensors"}), "has no file other.safetensors"),
    "missing": (_index(**ALL | {"z": "part.safetensors"}), "differ in 1 weights, first z"),
    "unlisted": (_index(a="part.safetensors"), "differ in 4 weights, first b"),
    "no places": (_file(INDEX, "{}"), None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_and_nothing_outside_is_read(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = HOSTILE[case]
    folder = tmp_path / "folder"
    write_folder(folder, {}, WEIGHTS)
    change(folder)
    opened: list[str] = []
    plain_open = os.open

    def recorded(path: Any, *flags: int) -> int:
        opened.append(os.path.realpath(path))
        return plain_open(path, *flags)

    monkeypatch.setattr("xftrain.utils.files.os.open", recorded)
    if said is None:  # an index beside the one file of weights is not needed
        assert _same(read_folder(folder).weights)
    else:
        with pytest.raises(ConfigError, match=said) as error:
            read_folder(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert all(Path(path).is_relative_to(folder.resolve()) for path in opened)


def test_the_links_of_the_cache_of_hugging_face_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "plain", {"x": 1}, WEIGHTS)
    blobs, snapshot = tmp_path / "models--x/blobs", tmp_path / "models--x/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "plain").iterdir():
        path.rename(blobs / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    assert _same(read_folder(snapshot).weights)


def _header(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        _header(b"{}", length=1 << 63),
        _header(b"{}", length=100),
        _header(b" " * ((16 << 20) + 1)),
        _header(b"[" * 100_000),
        _header([1]),
        _header({"w": 1}),
        _header({"w" * 501: _tensor()["w"]}),
        _header(_tensor(shape=(float("nan"),))),
        _header(_tensor(shape=(-1, -2))),
        _header(_tensor(shape=(2.0,))),
        _header(_tensor(shape=(True, 2))),
        _header(_tensor(shape=(1 << 40, 1 << 40))),
        _header(_tensor(shape=(1,) * 8 + (2,))),
        _header(_tensor(shape=None)),
        _header(_tensor(dtype=3)),
        _header(_tensor(offsets=(8, 0))),
        _header(_tensor(offsets=(0, 8, 16))),
        _header(_tensor(offsets=(4, 12), shape=(2,)), b"\0" * 12),
        _header(_tensor(), b"\0" * 9),
        _header(_tensor(), b"\0" * 7),
        _header({**_tensor(), "v": _tensor()["w"]}),
    ],
)
def test_a_damaged_safetensors_file_is_refused_before_anything_is_allocated(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="^init_from=w: w.safetensors cannot be read"):
        SafetensorsFile(tmp_path / "w.safetensors", "init_from=w")


def test_a_file_of_holes_is_refused(tmp_path: Path) -> None:
    size = 1 << 40
    (tmp_path / "w.safetensors").write_bytes(
        _header(_tensor(shape=(size // 4,), offsets=(0, size)))
    )
    os.truncate(tmp_path / "w.safetensors", (tmp_path / "w.safetensors").stat().st_size - 8 + size)
    with pytest.raises(ConfigError, match="are stored on disk"):
        SafetensorsFile(tmp_path / "w.safetensors", "init_from=w")


@given(st.integers(0, 200), st.integers(0, 255))
def test_any_damaged_byte_of_a_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path, "init_from=x")
        assert all(file[name].shape == shape for name, shape in file.shapes.items())
    except ConfigError:
        pass


def test_a_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path)
    file = SafetensorsFile(path, "init_from=w")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ConfigError, match="has become shorter"):
        [file[name] for name in WEIGHTS]


def test_numbers_that_are_no_weights_are_refused_when_they_are_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2).long()}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors", "init_from=w")
    assert file.shapes == {"w": (2,)}
    with pytest.raises(ConfigError, match="w has numbers of the type I64, and must have one of"):
        file["w"]
