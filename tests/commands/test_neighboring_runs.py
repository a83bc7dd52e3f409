"""The HParams tab shows first what differs between a run and those beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from xftrain.commands.neighboring_runs import _USUAL, differing_keys
from xftrain.logger.tensorboard import TensorBoard


def _run(folder: Path, name: str, overrides: Any) -> Path:
    (folder / name).mkdir()
    (folder / name / "result.json").write_text(json.dumps({"overrides": overrides}))
    return folder / name


def _keys(run_dir: Path, *, is_job: bool = False, **overrides: str) -> set[str]:
    typed = {key.replace("__", "."): value for key, value in overrides.items()}
    return set(differing_keys(run_dir, typed, is_job=is_job))


def test_what_all_runs_share_does_not_differ(tmp_path: Path) -> None:
    mine = _run(tmp_path, "3", [])
    assert _keys(mine, max_steps="100", optim__lr="1e-3") == {"max_steps", "optim.lr"}  # alone
    _run(tmp_path, "1", ["max_steps=100", "optim.lr=1e-2"])
    assert _keys(mine, max_steps="100", optim__lr="1e-3") == {"optim.lr"}
    _run(tmp_path, "2", ["max_steps=100", "model/attn=naive", "+data.seq=3"])
    keys = {"optim.lr", "model.attn", "data.seq"}
    assert _keys(mine, max_steps="100", optim__lr="1e-3") == keys
    assert _keys(mine) == keys | {"max_steps"}  # nothing was typed for this run itself


def test_a_job_of_a_multirun_has_the_keys_that_its_folder_is_named_by(tmp_path: Path) -> None:
    _run(tmp_path, "0_lr=1", ["optim.lr=1", "seq=8"])
    assert _keys(tmp_path / "1_lr=2", is_job=True, optim__lr="2") == {"optim.lr"}


def test_without_any_override_the_usual_ones_come_first(tmp_path: Path) -> None:
    _run(tmp_path, "1", [])
    assert _keys(tmp_path / "2") == _USUAL


@pytest.mark.parametrize("wrong", [None, 3, "x", [1, None, {}], {"a": 1}])
def test_a_file_of_another_shape_is_no_neighbor(tmp_path: Path, wrong: Any) -> None:
    _run(tmp_path, "1", wrong)
    assert _keys(tmp_path / "2", seq="8") == {"seq"}
    assert _keys(tmp_path / "none" / "2", seq="8") == {"seq"}


def test_a_neighbor_costs_little_whatever_its_file_holds(tmp_path: Path) -> None:
    mine = _run(tmp_path, "9", [])
    _run(tmp_path, "1", [f"key{n}=1" for n in range(100_000)])  # a file of more than 64 KiB
    _run(tmp_path, "2", [f"k{n}=1" for n in range(1000)])
    _run(tmp_path, "3", ["x" * 1000, "seq=16"])
    keys = _keys(mine, seq="8")
    assert keys == {"seq", *(f"k{n}" for n in range(200))}


def test_tensorboard_marks_them_and_its_own_order_has_them_first(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    options = {"batch_tokens": 64, "model.attn.name": "naive", "optim.lr": 1e-3, "seq": 8}
    board.begin_hparams(options, ["val/loss", "train/loss"], {"optim.lr", "model.attn"})
    board.save()
    board.close()
    content = EventAccumulator(str(tmp_path)).Reload().SummaryMetadata("_hparams_/experiment")
    data = HParamsPluginData.FromString(content.plugin_data.content)
    infos = data.experiment.hparam_infos
    order = sorted(infos, key=lambda info: (not info.differs, info.name))  # as its server does
    assert [info.name for info in order] == ["model.attn.name", "optim.lr", "batch_tokens", "seq"]
    assert [info.name.tag for info in data.experiment.metric_infos] == ["val/loss", "train/loss"]
