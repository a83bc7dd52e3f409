"""The code of a user's own classes is a part of what a benchmark and a checkpoint identify."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.train.runs import run
from xftrain.benchmark.cells import attention_cell, node_of
from xftrain.benchmark.training import TrainCell
from xftrain.config import own_code as own_code_module
from xftrain.config.compose import compose, validate
from xftrain.config.own_code import own_code
from xftrain.model.attn.naive import Naive

MODULES = {
    "own_factor": "FACTOR = 1.0\n",
    "own_base": "import own_factor\n",
    "own_backend": """
import torch
from lightning.pytorch import Callback
from xftrain.model.attn.naive import Naive
from own_base import own_factor
class Mine(Naive):
    name = "mine"
class Quiet(Callback):
    pass
""",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    own_code_module._sources.cache_clear()
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_all_modules_behind_a_class_count_and_installed_ones_do_not(modules: Path) -> None:
    node = {"a": [{"_target_": "own_backend.Mine", "inner": {"_target_": "torch.nn.Linear"}}]}
    first = own_code(node)
    assert first.keys() == {"own_backend.Mine", "torch.nn.Linear"}
    assert own_code({"name": "naive"}, {"_target_": "no.such.Class"}) == {}
    changed = []
    for name in MODULES:
        path = modules / f"{name}.py"
        before = path.read_text()
        path.write_text(f"{before}# changed\n")
        changed.append(own_code(node))
        path.write_text(before)
    assert all(one["own_backend.Mine"] != first["own_backend.Mine"] for one in changed)
    assert all(one["torch.nn.Linear"] == first["torch.nn.Linear"] for one in changed)
    assert own_code(node) == first
    assert issubclass(importlib.import_module("own_backend").Mine, Naive)


def test_a_row_belongs_to_the_code_of_its_class(modules: Path) -> None:
    # the rows of a backend whose code has changed were kept, and shown as those of the new code
    def keys() -> list[str]:
        cells = [
            attention_cell(
                *("parity", node_of("model/attn", backend), {"name": "causal"}, {"name": "mha"}),
                **{"rows": 1, "num_heads": 2, "head_dim": 8, "length": 16},
                **{"dtype": "float32", "device": "cpu"},
            )
            for backend in ("naive", {"_target_": "own_backend.Mine"})
        ]
        options = validate(compose("+callbacks.x={_target_: own_backend.Quiet}")).to_dict()
        options["model"]["attn"] = {"_target_": "own_backend.Mine"}
        return [one.key for one in (*cells, TrainCell("train", {}, options, 3))]

    first = keys()
    assert keys() == first
    # as it was before own classes counted, so that rows from then are kept
    assert first[0].endswith("#58f71bf1")
    (modules / "own_factor.py").write_text("FACTOR = 0.5\n")
    assert [one == other for one, other in zip(first, keys(), strict=True)] == [True, False, False]


def test_a_resumed_run_says_that_the_code_of_a_class_has_changed(
    modules: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = "+callbacks.own={_target_: own_backend.Quiet}"
    run(tmp_path / "run", own, "max_steps=1")
    run(tmp_path / "run", own, "max_steps=2", "ckpt=auto")
    assert "has changed since" not in caplog.text
    (modules / "own_base.py").write_text("import own_factor\nX = 1\n")
    run(tmp_path / "run", own, "max_steps=3", "ckpt=auto")
    assert "the code of own_backend.Quiet has changed since it was saved" in caplog.text
