"""Helpers that run short trainings in this process, and read their files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

import xftrain
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands.builder import build_data, build_model
from xftrain.config.compose import compose, validate
from xftrain.interfaces import Batch, DataSource, LossSums
from xftrain.model.gpt import GPT
from xftrain.train.module import TrainingModule

SMALL = (
    "trainer=cpu",
    "model.attn=naive",
    "model.dim=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "seq=16",
    "batch_tokens=128",
    "max_steps=6",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=2",
    "callbacks.sample=null",
    "callbacks.checkpoint.every_n_steps=100",  # without it the time decides which saves are made
)


def small(*overrides: str, **where: Any) -> DictConfig:
    first = [one for one in SMALL if "callbacks=none" not in overrides or "callbacks" not in one]
    return compose(*first, *overrides, **where)


def run(run_dir: Path, *overrides: str, **where: Any) -> dict[str, Any]:
    return xftrain.run(small(*overrides, **where), run_dir)


def result_of(run_dir: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    loaded: dict[str, Any] = json.loads(
        (run_dir / "result.json").read_text(), parse_constant=refuse
    )
    return loaded


def rows_of(run_dir: Path, name: str) -> dict[int, float]:
    """Reads step and value of a metric from metrics.csv, and checks that each step occurs once."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), row.get(name)) for row in csv.DictReader(file)]
    named = [(step, float(value)) for step, value in rows if value]
    assert len(named) == len(dict(named)), f"{name} twice at a step: {named}"
    return dict(named)


def infinite_loss(monkeypatch: pytest.MonkeyPatch, when: Callable[[Trainer], bool]) -> None:
    """Makes the loss infinite in the training batches for which `when` is true."""
    forward = TrainingModule.forward_loss

    def infinite(module: TrainingModule, batch: Batch, *, with_accuracy: bool) -> LossSums:
        sums = forward(module, batch, with_accuracy=with_accuracy)
        is_spoilt = module.training and when(module.trainer)
        return sums._replace(loss=sums.loss + (float("inf") if is_spoilt else 0.0))

    monkeypatch.setattr(TrainingModule, "forward_loss", infinite)


def weights_of(ckpt: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_checkpoint(ckpt)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


def last(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights_of(one), weights_of(two)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def model_and_data(*overrides: str, **where: Any) -> tuple[GPT, DataSource]:
    """What such a run starts with."""
    cfg = small(*overrides, **where)
    data = build_data(validate(cfg))
    return build_model(cfg, data), data


def loss_of(model: GPT, batch: Batch) -> Tensor:
    """Mean cross-entropy, from the logits."""
    logits_BMV = model(batch.tokens_BM, batch.seqlens)
    return torch.nn.functional.cross_entropy(logits_BMV.flatten(0, 1), batch.labels_BM.flatten())
