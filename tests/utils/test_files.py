"""Folders and files that processes make side by side."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.errors import ConfigError
from xftrain.folders.links import refuse_links
from xftrain.utils.files import (
    NotPlainFile,
    make_new_folder,
    open_plain,
    read_json,
    read_plain,
    real_path,
    replace_text,
)


def test_each_of_many_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_new_folder, [tmp_path / "2026" / "now"] * 24))
    assert len(set(made)) == 24 and all(folder.is_dir() for folder in made)
    assert made[0].parent == tmp_path / "2026"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_new_folder(tmp_path / "file" / "2026" / "now")
    (tmp_path / "outputs").symlink_to(tmp_path / "a disk that is not mounted")
    with pytest.raises(FileExistsError):
        make_new_folder(tmp_path / "outputs" / "2026" / "now")


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_nothing_but_a_plain_file_is_opened(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        server.bind("socket")
    for name in ("folder", "fifo", "link", "dangling", "device", "socket"):
        with pytest.raises(OSError):
            open_plain(tmp_path / name, mode)
    with pytest.raises(NotPlainFile):
        open_plain(Path("/dev/zero"))
    assert (tmp_path / "target").read_text() == "kept" and not (tmp_path / "made").exists()
    with open_plain(tmp_path / "target", mode) as file:
        assert file.read() == b"kept" if mode == "rb" else file.write(b"!") == 1


def test_a_file_that_is_larger_than_expected_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(NotPlainFile, match="larger than 4 bytes"):
        read_plain(tmp_path / "file", 4)


def test_json_of_a_stranger_is_a_mapping_or_nothing(tmp_path: Path) -> None:
    for text in ("[1]", "{", "\udcff", "[" * 100_000, '{"a":' * 100_000):
        (tmp_path / "file").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert read_json(tmp_path / "file") is None


def test_a_record_of_many_megabytes_is_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"x": "' + "x" * (2 << 20) + '"}')
    assert read_json(tmp_path / "result.json") is None


def test_a_link_at_the_place_of_a_new_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    replace_text(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "file"}


def test_a_folder_with_a_link_out_of_it_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "within").symlink_to("checkpoints")
    (tmp_path / "named").symlink_to(run)
    refuse_links(tmp_path / "named", "hydra.run.dir")
    (run / "checkpoints" / "x").symlink_to(tmp_path / "made later")
    with pytest.raises(ConfigError, match="hydra.run.dir.*checkpoints/x.*leads out"):
        refuse_links(tmp_path / "named", "hydra.run.dir")


def test_a_file_with_a_hard_link_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run" / "xftrain.log").hardlink_to(tmp_path / "precious")
    with pytest.raises(NotPlainFile, match="a hard link, whose other name"):
        open_plain(tmp_path / "run" / "xftrain.log", "ab")
    with pytest.raises(ConfigError, match="xftrain.log, with a hard link"):
        refuse_links(tmp_path / "run", "hydra.run.dir")


def test_of_a_sweep_nothing_is_taken_for_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0_seed=1").symlink_to("/elsewhere")
    refuse_links(tmp_path, "hydra.run.dir")
    with pytest.raises(ConfigError, match="hydra.sweep.dir=.* has a link in it, 0_seed=1"):
        refuse_links(tmp_path, "hydra.sweep.dir", may_hold_data=False)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch) -> None:
    scandir = os.scandir

    def refused(path: Path):
        if Path(path).name == ".hydra":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (tmp_path / ".hydra").mkdir()
    monkeypatch.setattr(os, "scandir", refused)  # root may list everything
    with pytest.raises(ConfigError, match="cannot be searched for links .Permission denied."):
        refuse_links(tmp_path, "hydra.run.dir")


@pytest.mark.parametrize("kind", ["a circle", "a chain"])
def test_links_that_the_system_does_not_follow_are_a_sentence(tmp_path: Path, kind: str) -> None:
    # os.path.realpath ended in a RecursionError
    for number in range(1 if kind == "a circle" else 3000):
        target = "l0" if kind == "a circle" else f"l{number + 1}"
        (tmp_path / f"l{number}").symlink_to(target)
    (tmp_path / "l3000").touch()
    assert real_path(tmp_path / "l0") is None
    assert real_path(tmp_path / "l2990") == (tmp_path / ("l3000" if kind == "a chain" else "l2990"))
    for folder in (tmp_path, tmp_path / "l0"):
        with pytest.raises(ConfigError, match="in a circle") as refused:
            refuse_links(folder, "hydra.run.dir")
        assert str(refused.value).endswith(".")


def test_links_behind_a_missing_name_are_counted_as_well(tmp_path: Path) -> None:
    # for the system the name is missing, and os.path.realpath followed all of them
    for number in range(100):
        (tmp_path / f"l{number}").symlink_to(f"missing/../l{number + 1}")
    assert real_path(tmp_path / "l0") is None
    assert real_path(tmp_path / "l90") == tmp_path / "l100"


@given(parts=st.lists(st.sampled_from(["a", "b", "..", ".", "", "l", "m", "up"]), max_size=8))
def test_a_path_is_resolved_as_python_resolves_it(tmp_path_factory, parts: list[str]) -> None:
    top = tmp_path_factory.mktemp("links")
    (top / "a" / "b").mkdir(parents=True)
    for name, target in {
        "l": "a/b",
        "a/l": str(top / "a"),
        "a/b/up": "../..",
        "m": "none/l",
    }.items():
        (top / name).symlink_to(target)
    path = top.joinpath(*parts)
    assert str(real_path(path)) == os.path.realpath(path)
