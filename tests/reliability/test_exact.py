"""A run that was continued three times ends bitwise as one that was not; on a GPU as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError
from xftrain.model.backends import all_backends

STEPS = 8
BASE = (
    "deterministic=true",
    "model.dropout=0.1",
    "trainer.val_check_interval=3",
    "callbacks.checkpoint.every_n_steps=1",
    "data.stop_at_accuracy=null",
)
CASES = {
    "dropout": (),
    "accumulated": ("trainer.accumulate_grad_batches=3",),
    "packed": (
        "data=counting_packed",
        "model.bias=alibi",
        "model.heads=gqa",
        "model.activation_checkpointing=ffn",
    ),
    "bf16": (
        "trainer.precision=bf16-mixed",
        "model.pos=rope",
        "model.activation_checkpointing=true",
    ),
}


def check(tmp_path: Path, *overrides: str) -> None:
    words = (*BASE, *overrides)
    result = run(tmp_path / "whole", *words, f"max_steps={STEPS}", "schedule=constant")
    cut = tmp_path / "cut"
    for steps in (2, 3, 5, STEPS):
        again = run(cut, *words, f"max_steps={steps}", "schedule=constant", "ckpt=auto")
        assert again["steps"] == steps
    assert same_weights(last(tmp_path / "whole"), last(cut))
    assert again["metrics"]["val/loss"] == result["metrics"]["val/loss"]
    states = [
        read_checkpoint(last(tmp_path / name))["optimizer_states"][0]["state"]
        for name in ("whole", "cut")
    ]
    for number, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][number][key]), (number, key)


@pytest.mark.fault("continued three times, CPU")
@pytest.mark.parametrize("case", CASES)
def test_three_times_continued_is_the_same_run(tmp_path, case):
    check(tmp_path, *CASES[case])


@pytest.mark.cuda
@pytest.mark.fault("continued three times, GPU")
@pytest.mark.parametrize("backend", ["naive", "sdpa", "xformers", "flex", "auto"])
@pytest.mark.parametrize("case", [*CASES, "fp16 with GradScaler", "compiled", "graphed"])
def test_three_times_continued_is_the_same_run_on_a_gpu(tmp_path, case, backend):
    more = {
        "fp16 with GradScaler": ("trainer.precision=16-mixed",),
        "compiled": ("compile=true", "trainer.precision=bf16-mixed"),
        "graphed": ("compile=cudagraphs", "trainer.precision=bf16-mixed"),
    }
    overrides = ("trainer=gpu", f"model.attn={backend}", "seq=128", "batch_tokens=1024")
    try:
        check(tmp_path, *overrides, *(CASES | more)[case])
    except ConfigError as refused:  # with the reason and an alternative
        assert "Nearest choice that works" in str(refused)
        pytest.skip(str(refused))


@pytest.mark.cuda
@pytest.mark.fault("NaN at a step, GPU")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("backend", [backend.name for backend in all_backends()])
def test_nan_stops_on_a_gpu_too(tmp_path, poison, backend, precision):
    poison(backend, 2)
    words = ("trainer=gpu", f"trainer.precision={precision}", f"model.attn={backend}", "seq=128")
    with pytest.raises(RuntimeError, match=r"of step 3 is not finite \(first in what reaches"):
        run(tmp_path, *words, "callbacks.checkpoint.every_n_steps=2")
    weights = read_checkpoint(last(tmp_path))["state_dict"].values()
    assert all(torch.isfinite(weight).all() for weight in weights)
