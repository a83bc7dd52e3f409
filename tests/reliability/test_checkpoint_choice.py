"""Choosing among the checkpoints of somebody else's folder takes little memory and time."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from xftrain.checkpoint import header as checkpoint_header
from xftrain.checkpoint.header import checkpoints_in, run_id, summary
from xftrain.checkpoint.newest import checkpoint_to_load, newest_save
from xftrain.checkpoint.plain_pickle import read_plain_pickle
from xftrain.checkpoint.plain_values import NotPlain
from xftrain.errors import ConfigError

EMPTY: dict[str, Any] = {
    "state_dict": {},
    "global_step": 1,
    "pytorch-lightning_version": "2",
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
    "callbacks": {"RunStart": {"run": "abc"}},
}


def write(path: Path, saved_at: int, more: bytes = b"") -> None:
    """Writes a checkpoint whose pickle has a list of more objects."""
    own = {"xftrain": {"config": {}, "saved_at": saved_at}, **EMPTY}
    body = pickle.dumps(own, protocol=2)[:-1] + b"X\x01\0\0\0x](" + more + b"es."
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", b"3\n")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.getvalue())


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.long
def test_the_contents_are_not_kept(tmp_path: Path) -> None:
    checkpoint_header._summary.cache_clear()
    for number in range(6):
        write(tmp_path / "checkpoints" / f"{number}.ckpt", number + 1, b"}" * 40_000)
    tracemalloc.start()
    try:
        assert newest_save(tmp_path) == 6
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * 64 * 40_000  # of one file, not of six


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("operation", [b"}", b"]"])
def test_empty_containers_count_with_the_memory_they_take(operation: bytes) -> None:
    body = b"\x80\x02](" + operation * 900_000 + b"e."
    with pytest.raises(NotPlain, match="holds more than .* lists and mappings"):
        read_plain_pickle(body, {})
    assert len(read_plain_pickle(b"\x80\x02](" + operation * 9_000 + b"e.", {})) == 9_000


@pytest.mark.fault("hostile checkpoint")
def test_a_limited_number_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    for number in range(40):
        write(folder / f"{number:02}.ckpt", 100 + number)
        os.utime(folder / f"{number:02}.ckpt", (number, number))
    write(folder / "best.ckpt", 1)
    os.utime(folder / "best.ckpt", (0, 0))
    found = [path.stem for path in checkpoints_in(folder)]
    assert found == [*(str(number) for number in range(25, 40)), "best"]
    assert "holds 41 checkpoints, of which 16 are looked at" in caplog.text
    read: list[Path] = []
    monkeypatch.setattr(
        "xftrain.checkpoint.newest.read_checkpoint",
        lambda path: read.append(path) or {"global_step": 1},
    )
    assert checkpoint_to_load("auto", tmp_path) == folder / "39.ckpt" == read[0]


def test_a_summary_of_what_is_no_checkpoint_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("text")
    os.mkfifo(tmp_path / "b.ckpt")
    for name in ("a.ckpt", "b.ckpt", "c.ckpt"):
        assert summary(tmp_path / name) == (None, 0, None)
    write(tmp_path / "d.ckpt", 2**2000)
    assert summary(tmp_path / "d.ckpt") == ("abc", 0, None)
    write(tmp_path / "d.ckpt", 5)
    assert summary(tmp_path / "d.ckpt") == ("abc", 5, (5, 1)) and run_id(tmp_path / "d.ckpt")
    with pytest.raises(ConfigError, match="none can be read"):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "a.ckpt").write_text("text")
        checkpoint_to_load("auto", tmp_path)
