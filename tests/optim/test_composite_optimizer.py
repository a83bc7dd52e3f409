"""Several optimizers as one: its steps, its state and its flags are those of the parts."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from tests.train.runs import last, run, weights_of
from tests.train.test_step_sums import with_half
from xftrain.train.composite_optimizer import CompositeOptimizer
from xftrain.train.nonfinite import skips_if_found_inf


def model_and(kind) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model, and its optimizer: one of two groups, or one for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    first, second = (
        [{"params": list(layer.parameters()), "lr": lr}]
        for layer, lr in zip(model, (0.1, 0.01), strict=True)
    )
    if kind is CompositeOptimizer:
        return model, CompositeOptimizer([adamw(first), adamw(second)])
    return model, adamw(first + second)


def adamw(groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


def steps(model, optimizer, number: int, first: int = 0) -> list[Tensor]:
    for step in range(first, first + number):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_two_parts_step_as_one_optimizer_with_two_groups():
    assert same(steps(*model_and(torch.optim.AdamW), 4), steps(*model_and(CompositeOptimizer), 4))


def test_a_scheduler_changes_the_rates_of_the_parts():
    _, optimizer = model_and(CompositeOptimizer)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.005]


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_restored_state_is_that_of_the_parts(way):
    model, optimizer = model_and(CompositeOptimizer)
    steps(model, optimizer, 2)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    if way == "deepcopy":
        restored_model, restored = copy.deepcopy((model, optimizer))
    else:
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        restored_model, restored = model_and(CompositeOptimizer)
        steps(restored_model, restored, 1)
        restored_model.load_state_dict(saved["model"])
        restored.load_state_dict(saved["optimizer"])
    assert same(steps(model, optimizer, 2, first=2), steps(restored_model, restored, 2, first=2))
    assert all(part.state is restored.state for part in restored.parts)


def test_an_overflow_keeps_every_part_from_its_step():
    model, optimizer = model_and(CompositeOptimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert skips_if_found_inf(optimizer)
    loss = model(torch.ones(4, 3)).sum() * float("inf")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same(before, list(model.parameters())) and scaler.get_scale() == 2.0
    assert not any(hasattr(part, "found_inf") for part in optimizer.parts)


def test_a_scaled_step_is_that_of_one_optimizer():
    found = []
    for kind in (torch.optim.AdamW, CompositeOptimizer):
        model, optimizer = model_and(kind)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(model(torch.ones(4, 3)).square().sum()).backward()
        scaler.step(optimizer)
        found.append([parameter.detach() for parameter in model.parameters()])
    assert same(*found)


def test_the_flag_is_taken_only_where_every_part_takes_it():
    layers = nn.Linear(3, 3), nn.Linear(3, 3)
    parts = adamw(layers[0].parameters()), torch.optim.Adafactor(layers[1].parameters())
    assert not skips_if_found_inf(CompositeOptimizer(parts))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_with_two_equal_optimizers_is_the_run_with_one(tmp_path, monkeypatch, precision):
    if precision == "16-mixed":  # Lightning's own is for GPUs alone
        with_half(monkeypatch, MixedPrecision("16-mixed", "cpu"))
    # the norm of all gradients is summed in another order
    words = ("trainer.gradient_clip_val=null", "model.dropout=0.1", "max_steps=4")
    run(tmp_path / "one", *words)
    run(tmp_path / "two", *words, "optim.param_groups=[{match:'*.ffn.*',optimizer:adamw}]")
    one, two = (weights_of(last(tmp_path / name)) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
