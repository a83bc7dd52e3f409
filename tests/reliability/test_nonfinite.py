"""NaN and inf stop a run before they reach the weights, or are left out."""

from __future__ import annotations

import pytest
import torch

from tests.train.runs import (
    infinite_loss,
    last,
    result_of,
    rows_of,
    run,
    same_weights,
    weights_of,
)
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import RunError
from xftrain.interfaces import LossSums
from xftrain.model.backends import all_backends
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.optim.adamw import AdamW
from xftrain.train.nonfinite import NonFiniteGuard

ON_CPU = [b.name for b in all_backends() if b.name != "flex"]  # flex trains on GPUs alone


@pytest.mark.fault("NaN at a step")
@pytest.mark.parametrize("backend", ON_CPU)
def test_nan_in_a_step_stops_before_it_is_made(tmp_path, poison, backend):
    attn = f"model.attn={backend}"
    run(tmp_path / "good", attn, "max_steps=2", "schedule=constant")
    poison(backend, 2)  # step 3, which is noticed at the record of step 4
    with pytest.raises(RunError) as stopped:
        run(
            tmp_path / "bad",
            attn,
            "schedule=constant",
            "callbacks.checkpoint.every_n_steps=2",
        )
    said = str(stopped.value)
    assert "of step 3 is not finite (first in what reaches blocks.0.out)" in said
    result = result_of(tmp_path / "bad")
    assert (result["status"], result["error"]) == ("failed", said)
    assert same_weights(last(tmp_path / "good"), last(tmp_path / "bad"))
    assert read_checkpoint(last(tmp_path / "bad"))["global_step"] == 2


@pytest.mark.fault("NaN at a step")
def test_no_checkpoint_is_written_after_it(tmp_path, poison):
    poison("naive", 2)
    every = ("callbacks.checkpoint.every_n_steps=1", "trainer.log_every_n_steps=6")
    with pytest.raises(RunError, match="of step 3 is not finite"):
        run(tmp_path, *every)
    assert read_checkpoint(last(tmp_path))["global_step"] == 2


@pytest.mark.fault("NaN at a step, skipped")
def test_skip_leaves_the_step_out_and_counts_it(tmp_path, poison, caplog):
    poison("naive", 2, 3)
    result = run(tmp_path, "on_nonfinite=skip", "max_skipped_steps=2")
    assert (result["status"], result["steps"]) == ("completed", 6)
    assert "not finite: step 3, 4 (2 of at most 2)" in caplog.text
    assert rows_of(tmp_path, "train/skipped_steps") == {2: 0, 4: 2, 6: 2}
    assert all(torch.isfinite(weight).all() for weight in weights_of(last(tmp_path)).values())


@pytest.mark.fault("NaN at a step, skipped")
def test_skip_has_a_budget(tmp_path, poison):
    poison("naive", 1, 2, 3)
    with pytest.raises(RunError, match="of step 4 .*max_skipped_steps=2 is used up"):
        run(tmp_path, "on_nonfinite=skip", "max_skipped_steps=2")


@pytest.mark.fault("NaN at a step, skipped")
def test_a_skipped_step_changes_nothing(tmp_path, poison):
    run(tmp_path / "two", "max_steps=2", "schedule=constant", "schedule.warmup_steps=0")
    poison("naive", 2)
    last_left_out = ("max_steps=3", "schedule=constant", "schedule.warmup_steps=0")
    run(tmp_path / "three", *last_left_out, "on_nonfinite=skip")
    assert same_weights(last(tmp_path / "two"), last(tmp_path / "three"))


@pytest.mark.fault("NaN at a step")
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_optimizer_without_the_flag_is_kept_from_it_too(tmp_path, poison, monkeypatch, policy):
    build = AdamW.build

    def plain(self, model, schedule, max_steps):
        optimizer, lr_scheduler = build(self, model, schedule, max_steps)
        optimizer._step_supports_amp_scaling = False
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer, lr_scheduler

    monkeypatch.setattr(AdamW, "build", plain)
    poison("naive", 2)
    if policy == "stop":
        with pytest.raises(RunError, match="of step 3"):
            run(tmp_path)
    else:
        run(tmp_path, "on_nonfinite=skip")
        assert all(torch.isfinite(weight).all() for weight in weights_of(last(tmp_path)).values())


@pytest.mark.fault("weights that are not finite")
def test_weights_that_are_not_finite_are_named(tmp_path):
    run(tmp_path, "max_steps=2")
    content = torch.load(last(tmp_path))
    content["state_dict"]["model.blocks.0.out.weight"][0, 0] = float("inf")
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(RunError, match=r"of step 3 .*weights that are not finite: blocks\.0\.out"):
        run(tmp_path / "on", f"ckpt={tmp_path / 'bad.ckpt'}")


class Times(torch.autograd.Function):
    """The same forward; backward, the gradient times a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def spoil_gradients(monkeypatch, factor):
    forward = SwiGLU.forward
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x: Times.apply(forward(self, x), factor))


@pytest.mark.fault("inf in a gradient")
def test_a_gradient_alone_is_named(tmp_path, monkeypatch):
    spoil_gradients(monkeypatch, float("inf"))
    with pytest.raises(
        RunError, match=r"the loss is finite; first in the gradient of embed\.weight"
    ):
        run(tmp_path)


@pytest.mark.fault("inf in the loss of one of a step's batches")
def test_the_loss_of_every_batch_of_a_step_counts(tmp_path, monkeypatch):
    first_of_step_2 = 2  # of which there are two
    infinite_loss(monkeypatch, lambda at: at.fit_loop.total_batch_idx == first_of_step_2)
    with pytest.raises(RunError, match="of step 2 is not finite"):
        run(tmp_path, "trainer.accumulate_grad_batches=2")


# ---- with GradScaler, which Lightning has on GPUs alone


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("fault", ["infinite loss", "no label"])
def test_grad_scaler_leaves_out_a_step_and_keeps_its_scale(on_nonfinite, fault):
    # the gradient is finite, so that GradScaler sees nothing, and another scale would not help
    weights = [torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(2, 3).t())]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    scaler, guard = torch.amp.GradScaler("cpu"), NonFiniteGuard(on_nonfinite=on_nonfinite)
    moved = []
    for is_spoilt in (False, True, False):
        before = [weight.detach().clone() for weight in weights]
        loss = sum(weight.square().sum() for weight in weights)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        sums = LossSums(loss.detach(), torch.tensor(4), None)
        if is_spoilt and fault == "no label":
            sums = sums._replace(num_labels=torch.tensor(0))
        elif is_spoilt:
            sums = sums._replace(loss=torch.tensor(torch.inf))
        guard.check_step(optimizer, sums, None)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved.append([not torch.equal(a, b) for a, b in zip(before, weights, strict=True)])
    ends = on_nonfinite == "stop" and fault == "infinite loss"
    assert moved == [[True, True], [False, False], [not ends, not ends]]
    assert scaler.get_scale() == 2.0**16
    assert optimizer.state[weights[0]]["step"] == (1 if ends else 2)


@pytest.mark.cuda
@pytest.mark.fault("NaN in every gradient, fp16")
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_scale_that_falls_for_ever_is_an_error(tmp_path, monkeypatch, on_nonfinite):
    spoil_gradients(monkeypatch, float("nan"))
    here = ("trainer=gpu", "trainer.precision=16-mixed", "max_steps=60", "callbacks.sample=null")
    with pytest.raises(RunError, match=r"its scale is .*first in the gradient of embed\.weight"):
        run(tmp_path, *here, f"on_nonfinite={on_nonfinite}")
    assert 20 < result_of(tmp_path)["steps"] < 40


@pytest.mark.cuda
def test_an_infinite_loss_is_told_long_after_its_step(tmp_path, monkeypatch):
    # by then GradScaler, which is made to skip from there on, has halved its scale 47 times
    infinite_loss(monkeypatch, lambda trainer: trainer.global_step == 2)
    rarely = ("max_steps=60", "trainer.log_every_n_steps=50", "trainer.val_check_interval=100")
    here = ("trainer=gpu", "trainer.precision=16-mixed", "callbacks.sample=null")
    with pytest.raises(RunError, match="of step 3 is not finite"):
        run(tmp_path, *here, *rarely)
