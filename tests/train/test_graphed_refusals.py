"""What a replayed step would not see is refused, and the hooks that it does see are called."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback

from tests.train.runs import run, small
from xftrain.config.compose import validate
from xftrain.errors import ConfigError, RunError
from xftrain.optim.adamw import AdamW
from xftrain.train.graphed_loop import _has_hook

WARMUP = "schedule.warmup_steps=3"


RUN = ("max_steps=12", "trainer.val_check_interval=5", "model.dropout=0.1", WARMUP)


class Meddles(Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


def test_hooks_within_a_step_are_refused(tmp_path, graphs_on_cpu):
    mine = "+callbacks.mine={_target_: tests.train.test_graphed_refusals.Meddles}"
    with pytest.raises(ConfigError, match="Meddles.on_after_backward would not be called"):
        run(tmp_path, *RUN, "compile=cudagraphs", mine)


def test_an_optimizer_that_waits_is_refused(tmp_path, graphs_on_cpu):
    with pytest.raises(ConfigError, match="optim=adafactor cannot run .* learning rate"):
        run(tmp_path, *RUN, "compile=cudagraphs", "optim=adafactor")


def test_one_that_takes_a_flag_but_no_rate_is_refused(tmp_path, graphs_on_cpu, monkeypatch):
    def make(self, groups):
        return torch.optim.SGD(groups, lr=0.1, fused=True)

    monkeypatch.setattr(AdamW, "make", make)
    with pytest.raises(ConfigError, match="SGD cannot read the learning rate"):
        run(tmp_path, *RUN, "compile=cudagraphs")


@pytest.mark.parametrize("key", ["accumulate_grad_batches", "devices"])
def test_what_makes_a_step_of_several_batches_is_refused(key):
    # a replay writes each batch's gradients to the same place: the last one's alone would count
    with pytest.raises(ConfigError, match=rf"trainer\.{key} must be 1 with compile=cudagraphs"):
        validate(small("compile=cudagraphs", f"trainer.{key}=2"))


class Callbacks:
    """Callbacks whose hooks change a setting, or run within a step."""

    class Momentum(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 6:
                trainer.optimizers[0].param_groups[1]["betas"] = (0.5, 0.9)

    class Accumulates(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.accumulate_grad_batches = 2 if trainer.global_step == 6 else 1

    class Logs(Callback):
        losses: ClassVar[list[float]] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert batch.tokens_BM.device == pl_module.device
            self.losses.append(float(outputs["loss"]))
            pl_module.log("mine", outputs["loss"], batch_size=1)


def with_callback(name):
    return f"+callbacks.mine={{_target_: tests.train.test_graphed_refusals.Callbacks.{name}}}"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "Momentum",
            RunError,
            r"betas of the optimizer's group 1 = \(0.9, 0.95\), which is now \(0.5",
        ),
        ("Accumulates", ConfigError, "a callback has set accumulate_grad_batches to 2"),
    ],
)
def test_what_a_replay_would_not_see_is_refused(tmp_path, graphs_on_cpu, name, error, said):
    with pytest.raises(error, match=said):
        run(tmp_path, *RUN, "compile=cudagraphs", with_callback(name))


def test_hooks_get_what_they_get_without_graphs(tmp_path, graphs_on_cpu):
    losses = Callbacks.Logs.losses
    run(tmp_path / "plain", *RUN, with_callback("Logs"))
    plain = losses.copy()
    losses.clear()
    run(tmp_path / "graphed", *RUN, with_callback("Logs"), "compile=cudagraphs")
    assert losses == pytest.approx(plain, rel=1e-5) and len(plain) == 12


def test_hooks_of_an_instance_count():
    at_end = LambdaCallback(on_train_batch_end=lambda *args: None)
    within = LambdaCallback(on_after_backward=lambda *args: None)
    assert _has_hook(at_end, "on_train_batch_end") and not _has_hook(at_end, "on_after_backward")
    assert _has_hook(within, "on_after_backward")


def test_a_batch_of_another_shape_is_refused(tmp_path, graphs_on_cpu, monkeypatch):
    from xftrain.data.counting import Counting

    batch = Counting.batch

    def shorter(self, split, step, rank=0):
        made = batch(self, split, step, rank)
        if split == "train" and step == 5:
            made.tokens_BM, made.labels_BM = made.tokens_BM[1:], made.labels_BM[1:]
        return made

    monkeypatch.setattr(Counting, "batch", shorter)
    with pytest.raises(RunError, match=r"one shape, \(8, 16\), and a later one is of \(7, 16\)"):
        run(tmp_path, *RUN, "compile=cudagraphs")
