"""No step of a run waits for the device, so that the device never waits for the host."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from tests.train.runs import run
from tests.waits import allow_waits, refuse_waits

STRICT = "+callbacks.strict={_target_: tests.train.test_waits.Strict}"
FIRST, LAST = 4, 12  # the steps before measure products and compile


class Strict(Callback):
    """Makes synchronizing calls raise between the ends of two steps."""

    modifies_weights = False
    was_on = False

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == FIRST:
            refuse_waits()
        if trainer.global_step == LAST:
            Strict.was_on |= torch.cuda.get_sync_debug_mode() == 2
            allow_waits()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n\n" * 600)
    return f"data.path={path}"


PACKED = ("data=counting_packed", "seq=64", "batch_tokens=512")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.attn=sdpa", "model.pos=rope"),
        ("model.attn=sdpa", "model.bias=alibi", "trainer.precision=16-mixed"),
        ("model.attn=sdpa", "model.bias=window", "trainer.accumulate_grad_batches=2"),
        ("model.attn=sdpa", "compile=true", "model.pos=rope", "loss=fused"),
        ("model.attn=sdpa", "compile=cudagraphs", "model.pos=rope"),
        ("model.attn=xformers", *PACKED),
        ("model.attn=xformers", *PACKED, "model.bias=alibi", "model.pos=none"),
        ("model.attn=sdpa", *PACKED, "model.bias=alibi", "model.pos=rope"),
        ("model.attn=naive", *PACKED, "model.bias=window", "loss=chunked"),
        ("model.attn=flex", *PACKED, "model.bias=alibi", "optim.impl=torch"),
        ("model.attn=sdpa", "data=text", "model.activation_checkpointing=true"),
    ],
    ids=" ".join,
)
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, text, overrides):
    monkeypatch.setattr(Strict, "was_on", False)
    words = (text,) if "data=text" in overrides else ()
    every = ("trainer.log_every_n_steps=2", "trainer.val_check_interval=1000", "max_steps=14")
    try:
        run(tmp_path / "run", "trainer=gpu", STRICT, *every, *overrides, *words)
    finally:
        allow_waits()
    assert Strict.was_on
