"""init_from: weights alone into a run of its own, compared with its model before they are read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.runs import last, run, same_weights, small
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import initial_weights
from xftrain.commands.prepare import Prepared, prepare
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError

MODEL = ("model.pos=rope", "model.bias=window", "model.bias.window=12", "model.tie_embeddings=true")
QUIET = "callbacks=none"
FROZEN = ("max_steps=1", "optim.lr=1e-30", "schedule=constant")
FILES = ("last.ckpt", "weights.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    """The checkpoints of a run with rotary positions, a window and tied embeddings."""
    folder: Path = tmp_path_factory.mktemp("trained")
    run(folder, *MODEL, "max_steps=4", "optim.lr=0.01")
    return folder / "checkpoints"


def prepared(init_from: Path, *words: str, where: Path) -> Prepared:
    checked = validate_as(RunConfig, small(QUIET, *MODEL, f"init_from={init_from}", *words))
    return prepare(checked, checked.to_dict(), where)


def loss_of(where: Path, *words: str) -> float:
    loss: float = run(where, QUIET, *MODEL, *FROZEN, *words)["metrics"]["val/loss"]
    return loss


@pytest.mark.parametrize("name", FILES)
def test_a_run_of_another_length_and_backend_begins_with_the_same_loss(
    name: str, trained: Path, tmp_path: Path
) -> None:
    weights = f"init_from={trained / name}"
    longer = ("seq=48", "batch_tokens=96", "data.num_val_batches=2")
    before = loss_of(tmp_path / "a", *longer, weights)
    after = loss_of(tmp_path / "b", *longer, weights, "model.attn=sdpa", "seed=0")
    untrained = loss_of(tmp_path / "c", *longer)
    assert after == pytest.approx(before, abs=1e-6) and before < untrained - 0.2
    same = loss_of(tmp_path / "d", weights)
    assert same == pytest.approx(loss_of(tmp_path / "e", weights, "model.attn=sdpa"), abs=1e-6)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model.dim=64"],
            "is of a model with model.dim=32, and this one has 64: set model.dim=32",
        ),
        (["model.num_layers=2"], "model.num_layers=1, and this one has 2: set model.num_layers=1"),
        (["model.vocab_size=640"], "model.vocab_size=64, and this one has 640: set model.vocab_si"),
        (["model.heads=mqa"], r"1 of another shape .blocks.0.heads.qkv.weight is \[96, 32\] there"),
        (["model.ffn=gelu"], r"1 of another shape .blocks.0.ffn.up.weight is \[256, 32\] there"),
        (["model.pos=learned"], "has other weights than this model: 1 missing .pos.table.weight.:"),
        (["model.linear_bias=true"], r"7 missing .blocks.0.norm_attn.bias, .*, \.\.\.\)"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_the_data_is_prepared(
    name: str,
    words: Sequence[str],
    said: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xftrain.commands.builder.build_data", lambda *_: pytest.fail("data"))
    with pytest.raises(ConfigError, match=said):
        prepared(trained / name, *words, where=tmp_path)


def test_another_vocabulary_is_refused_even_of_the_same_size(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="another vocabulary, integers of 64 .*integers of 60 tok"
    ):
        prepared(trained / "last.ckpt", "data.vocab_size=60", where=tmp_path)
    with pytest.raises(
        ConfigError, match="64, and this one has 128: 100 of them are those of data"
    ):
        prepared(trained / "weights.safetensors", "data.vocab_size=100", where=tmp_path)


def test_learned_positions_may_be_fewer_and_not_more(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path / "run", "max_steps=1")
    path = tmp_path / "run/checkpoints/weights.safetensors"
    rows = load_file(path)["pos.table.weight"]
    words = ("model.pos=learned", "model.tie_embeddings=false")
    found = prepared(path, *words, "seq=8", where=tmp_path)
    assert found.initial is not None
    model = initial_weights.builder.assemble(found.cfg.model, found.vocab_size)
    found.initial.load_into(model)
    assert torch.equal(model.state_dict()["pos.table.weight"], rows[:8])
    with pytest.raises(
        ConfigError, match="16 learned positions, and this run has 32, .*positions=16"
    ):
        prepared(path, *words, "seq=32", where=tmp_path)


def test_the_output_matrix_of_its_own_is_not_dropped(trained: Path, tmp_path: Path) -> None:
    weights = load_file(trained / "weights.safetensors")
    save_file(weights | {"head.weight": weights["embed.weight"] + 1}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="an output matrix of its own, .*tie_embeddings=false"):
        run(tmp_path / "run", QUIET, *MODEL, f"init_from={tmp_path / 'w.safetensors'}")
    # where the run does not tie them, both begin with the one matrix
    found = prepared(trained / "weights.safetensors", "model.tie_embeddings=false", where=tmp_path)
    assert found.initial is not None
    model = initial_weights.builder.assemble(found.cfg.model, found.vocab_size)
    found.initial.load_into(model)
    assert torch.equal(model.head.weight, weights["embed.weight"])


def test_what_computes_otherwise_is_warned_of(trained: Path, tmp_path: Path, caplog: Any) -> None:
    prepared(trained / "last.ckpt", "model.ffn=geglu", "model.num_heads=4", where=tmp_path)
    assert "model.ffn.name=swiglu (here geglu), model.num_heads=2 (here 4), so" in caplog.text


def test_a_resumed_run_does_not_read_them_again(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "from")
    weights = f"init_from={tmp_path / 'from/last.ckpt'}"
    words = (*MODEL, "callbacks.sample=null", weights, "callbacks.checkpoint.every_n_steps=2")
    run(tmp_path / "whole", *words)
    cut = run(tmp_path / "run", *words, "ckpt=auto", "trainer.max_time=00:00:00:00")
    assert cut["steps"] < 6
    shutil.rmtree(tmp_path / "from")
    run(tmp_path / "run", *words, "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "run"))
    assert read_checkpoint(last(tmp_path / "run"))["global_step"] == 6
    with pytest.raises(ConfigError, match="is not what the run of ckpt=.* began with, .*from/last"):
        run(
            tmp_path / "b",
            *MODEL,
            f"init_from={trained}/last.ckpt",
            f"ckpt={last(tmp_path / 'run')}",
        )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "absent",
            "init_from must be an existing checkpoint, .safetensors file or Hugging Face fo",
        ),
        ("", "init_from must be .*; did you mean .*checkpoints/last.ckpt"),
        ("run.log", "init_from=.*run.log cannot be read .*no checkpoint of xftrain"),
        ("checkpoints", "init_from=.*checkpoints has no file config.json: give a complete folder"),
    ],
)
def test_what_are_no_weights_is_refused(
    path: str, said: str, trained: Path, tmp_path: Path
) -> None:
    (trained.parent / "run.log").write_text("text")
    with pytest.raises(ConfigError, match=said):
        prepared(trained.parent / path, where=tmp_path)
