"""Files that would execute something, or take the machine with them: refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import last, run, small
from xftrain import compose
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands.builder import build_data
from xftrain.config.compose import validate
from xftrain.errors import ConfigError
from xftrain.launch import cli


class Bomb:
    """Unpickled, it makes a folder: the marker that something was executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Any]:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return read_checkpoint(last(run_dir))


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "executed"


# ---- checkpoints: each makes a file


def _pickled(path: Path, good: dict[str, Any], marker: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(marker)))


def _saved(path: Path, good: dict[str, Any], marker: Path) -> None:
    torch.save(Bomb(marker), path)


def _saved_the_old_way(path: Path, good: dict[str, Any], marker: Path) -> None:
    torch.save(Bomb(marker), path, _use_new_zipfile_serialization=False)


def _in(*keys: str) -> Callable[[Path, dict[str, Any], Path], None]:
    def put(path: Path, good: dict[str, Any], marker: Path) -> None:
        content = {**good}
        node = content
        for key in keys[:-1]:
            node[key] = dict(node[key])
            node = node[key]
        node[keys[-1]] = Bomb(marker)
        torch.save(content, path)

    return put


def _config(**changes: Any) -> Callable[[Path, dict[str, Any], Path], None]:
    """A checkpoint whose configuration asks for something; nothing of it is ever built."""

    def put(path: Path, good: dict[str, Any], marker: Path) -> None:
        text = json.dumps(changes).replace("MARKER", str(marker))
        config = {**good["xftrain"]["config"], **json.loads(text)}
        torch.save({**good, "xftrain": {"config": config}}, path)

    return put


def _other_shape(path: Path, good: dict[str, Any], marker: Path) -> None:
    state = dict(good["state_dict"])
    name = next(iter(state))
    state[name] = torch.zeros(1).expand(2**40)  # four terabytes that take four bytes
    torch.save({**good, "state_dict": state}, path)


def _zip_bomb(path: Path, good: dict[str, Any], marker: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * 2**27)


def _outside_the_archive(path: Path, good: dict[str, Any], marker: Path) -> None:
    torch.save(good, path)  # a good one, and a file that an unpacker would put elsewhere
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"../../../../../..{marker}", b"written")
        archive.writestr(f"archive/../../../../../..{marker}", b"written")


def _numbers_for_strings(path: Path, good: dict[str, Any], marker: Path) -> None:
    torch.save({**good, "global_step": "1; import os", "xftrain": ["no", "mapping"]}, path)


CHECKPOINTS = {
    "a pickle": _pickled,
    "torch.save": _saved,
    "torch.save, the old format": _saved_the_old_way,
    "inside: global_step": _in("global_step"),
    "inside: a weight": _in("state_dict", "model.embed.weight"),
    "inside: callbacks": _in("callbacks"),
    "inside: the configuration": _in("xftrain", "config"),
    "inside: the optimizer": _in("optimizer_states"),
    "configuration: _target_ for the bias": _config(
        model={"bias": {"_target_": "os.mkdir", "path": "MARKER"}}
    ),
    "configuration: _target_ for a callback": _config(
        callbacks={"x": {"_target_": "os.mkdir", "path": "MARKER"}}
    ),
    "configuration: an interpolation": _config(data={"name": "${oc.env:HOME}"}),
    "configuration: a name that is a path": _config(data={"name": "../../../evil"}),
    "shape of four terabytes": _other_shape,
    "zip bomb": _zip_bomb,
    "a path out of the archive": _outside_the_archive,
    "numbers and strings swapped": _numbers_for_strings,
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_and_executes_nothing(tmp_path, good, marker, kind):
    path = tmp_path / "hostile.ckpt"
    CHECKPOINTS[kind](path, good, marker)
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "run", f"ckpt={path}")
    said = str(refused.value)
    assert said.startswith("ckpt") and said.endswith(".") and "\n" not in said
    assert not marker.exists()


def test_the_bomb_would_go_off(tmp_path, marker):
    pickle.load(io.BytesIO(pickle.dumps(Bomb(marker))))
    assert marker.is_dir()


# ---- the record of a sweep


RECORDS: dict[str, dict[str, Any]] = {
    "_target_": {"overrides": ["+callbacks.x._target_=os.mkdir", "+callbacks.x.path=MARKER"]},
    "a folder of options": {"config_dirs": ["/tmp/evil"]},
    "a search path": {"overrides": ["hydra.searchpath=[file:///tmp/evil]", "model/bias=evil"]},
    "a launcher that runs commands": {"overrides": ["hydra.launcher.setup=[mkdir MARKER]"]},
    "a callback of Hydra's": {"overrides": ["+hydra.callbacks.x={_target_: os.mkdir}"]},
    "an interpolation": {"overrides": ["tags=[${oc.env:HOME}]"]},
    "a flag": {"overrides": ["--experimental-rerun=MARKER"]},
    "a folder to write to": {"overrides": ["hydra.sweep.subdir=../../../../tmp/x"]},
    "another root": {"config_name": "../../evil"},
    "no list": {"overrides": "model.attn=naive"},
    "an option outside the folder": {"overrides": ["model/bias=../../../../tmp/evil/x"]},
    "one in a list": {"overrides": ["callbacks=[default,../../../../tmp/evil/x]"]},
    "one in a choice": {"overrides": ["model.bias=choice(causal,../../evil)"]},
    "an absolute one": {"overrides": ["experiment=/tmp/evil"]},
    "one of a dotted key": {"overrides": ["+model/../../tmp/evil@model=x"]},
}


@pytest.mark.fault("hostile record of a sweep")
@pytest.mark.parametrize("kind", RECORDS)
def test_a_hostile_record_of_a_sweep_is_refused(tmp_path, marker, monkeypatch, capsys, kind):
    usual = {"config_name": "train", "config_dirs": [], "overrides": ["seq=8,16"]}
    text = json.dumps({**usual, **RECORDS[kind]}).replace("MARKER", str(marker))
    (tmp_path / ".sweep.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["xftrain", f"resume_sweep={tmp_path}"])
    assert cli.main() == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("xftrain: the sweep in ") and "repeat its whole command" in said
    assert "\n" not in said and not marker.exists()


# ---- other files and words


@pytest.mark.fault("hostile configuration")
@pytest.mark.parametrize(
    "config",
    [
        {"model": {"bias": {"_target_": "os.system", "command": "touch MARKER"}}},
        {"callbacks": {"x": {"_target_": "builtins.exec"}}},
        {"model": {"attn": {"name": "../../../evil"}}},
        {"data": {"name": "os"}},
        {"logger": {"x": {"name": "__main__"}}},
    ],
)
def test_a_saved_configuration_names_nothing_but_options(marker, config):
    options = validate(small()).to_dict()
    for group, node in config.items():
        options[group] = {**options[group], **node}
    with pytest.raises(ConfigError):
        validate(options)
    assert not marker.exists()


@pytest.mark.fault("hostile tokenizer")
@pytest.mark.parametrize("content", [b"\x80\x04cos\nsystem\n", b'{"model": {"type": "evil"}}', b""])
def test_a_hostile_tokenizer_file_is_made_anew_or_refused(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("some words to learn from\n" * 300)
    words = ["data=text", f"data.path={tmp_path / 'corpus.txt'}", "data.tokenizer=bpe"]
    options = validate(compose(*words, "data.vocab_size=270", "seq=16", "batch_tokens=64"))
    build_data(options)
    files = [path for path in (tmp_path / "cache").rglob("*.json") if "token" in path.name]
    for path in files:
        path.write_bytes(content)
    try:
        batch = build_data(options).batch("train", 0)
    except ConfigError as refused:
        assert str(refused).endswith(".")
    else:
        assert int(batch.tokens_BM.max()) < 270


@pytest.mark.fault("URL for a file")
@pytest.mark.parametrize("override", ["ckpt=https://host/x.ckpt", "ckpt=s3://bucket/x.ckpt"])
def test_a_url_is_no_checkpoint(tmp_path, override):
    with pytest.raises(ConfigError, match="must be auto or an existing checkpoint file"):
        run(tmp_path, override)


@pytest.mark.fault("hostile record of a sweep")
@pytest.mark.parametrize("content", [b"[]", b'"x"', b"5", b"\xff", b"{", b""])
def test_a_record_that_is_none_is_said(tmp_path, monkeypatch, capsys, content):
    (tmp_path / ".sweep.json").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["xftrain", f"resume_sweep={tmp_path}"])
    assert cli.main() == 2
    assert "resume_sweep must be the folder of a sweep" in capsys.readouterr().err
