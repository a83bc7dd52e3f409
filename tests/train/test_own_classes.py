"""A user's own class enters by a YAML with `_target_`, in any group."""

from __future__ import annotations

import textwrap

import pytest

from tests.train.runs import (
    last,
    result_of,
    run,
    same_weights,
    weights_of,
)
from xftrain.errors import ConfigError

OWN = """
    import torch
    from lightning.pytorch import Callback
    from xftrain.model.attn.naive import Naive
    from xftrain.data.counting import Counting
    from xftrain.errors import ConfigError

    class Backend(Naive):
        name = "own"
        calls = 0

        def __call__(self, *args):
            Backend.calls += 1
            return super().__call__(*args)

        def kernel_for(self, call):
            return "own-kernel"

    class Backwards(Counting):
        def batch(self, split, step, rank=0):
            batch = super().batch(split, step, rank)
            batch.labels_BM = (batch.tokens_BM - 1) % self.vocab_size
            return batch

    class Bow(torch.nn.Module):
        def __init__(self, dim, linear_bias, *, width=8):
            super().__init__()
            self.inner = torch.nn.Linear(dim, width)
            self.outer = torch.nn.Linear(width, dim)

        def forward(self, x):
            return self.outer(self.inner(x).relu())

    class Picky(Callback):
        def __init__(self, *, depth):
            raise ConfigError(f"callbacks.own.depth must be 3, got {depth}.")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's own module, and YAML files that name its classes."""
    (tmp_path / "own_parts.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "model/attn/own": "_target_: own_parts.Backend",
        "model/ffn/bow": "_target_: own_parts.Bow\nwidth: 12",
        "data/backwards": "_target_: own_parts.Backwards\nvocab_size: 64\nstop_at_accuracy: null",
        "callbacks/early": "early:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n"
        "  monitor: val/loss\n  patience: 1\n  min_delta: 100.0",
        "logger/own": "own:\n  _target_: lightning.pytorch.loggers.CSVLogger\n"
        f"  save_dir: {tmp_path}/elsewhere\n  version: v1",
        "callbacks/picky": "own:\n  _target_: own_parts.Picky\n  depth: 4",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path / "conf"


def test_a_backend_of_the_users_own_trains(own, tmp_path):
    result = run(tmp_path / "own run", "model.attn=own", config_dir=own)
    run(tmp_path / "naive run", "model.attn=naive")
    from own_parts import Backend

    assert result["kernel"] == "own-kernel"
    assert Backend.calls > 6
    assert same_weights(last(tmp_path / "own run"), last(tmp_path / "naive run"))


def test_data_and_layers_of_the_users_own_train(own, tmp_path, caplog):
    with caplog.at_level("INFO"):
        result = run(
            tmp_path / "run",
            "data=backwards",
            "model.ffn=bow",
            "max_steps=40",
            "optim.lr=2e-2",
            config_dir=own,
        )
    assert weights_of(last(tmp_path / "run"))["blocks.0.ffn.inner.weight"].shape == (12, 32)
    # its weights start as it said, which is told
    assert "kept their own initialization: blocks.0.ffn.inner.weight" in caplog.text
    assert result["metrics"]["val/accuracy"] > 0.5  # counting down


def test_a_callback_of_lightnings_own_stops_the_run(own, tmp_path):
    steps = ("max_steps=20", "trainer.val_check_interval=2", "callbacks=[default,early]")
    result = run(tmp_path / "run", *steps, config_dir=own)
    assert result["steps"] == 4  # the second validation is no 100 better than the first


def test_a_logger_of_the_users_own_writes_where_it_says(own, tmp_path):
    result = run(tmp_path / "run", "logger=[csv,own]", config_dir=own)
    rows = (tmp_path / "elsewhere" / "lightning_logs" / "v1" / "metrics.csv").read_text()
    assert rows == (tmp_path / "run" / "metrics.csv").read_text()
    assert str(result["metrics"]["val/loss"]) in rows


def test_a_refusal_by_a_class_of_the_users_own_is_the_sentence_it_says(own, tmp_path):
    with pytest.raises(ConfigError, match="depth must be 3, got 4"):
        run(tmp_path / "run", "callbacks=[default,picky]", config_dir=own)
    assert result_of(tmp_path / "run")["status"] == "refused"
