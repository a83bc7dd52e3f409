"""A resumed run has the learning rate and the settings of today from its first step on."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.training.runs import last, rows_of, run
from xftrain.training.optim.adafactor import Adafactor
from xftrain.training.optim.adamw import AdamW

SETTINGS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-3, 0.02, 0.5]),
        "weight_decay": st.sampled_from([0.0, 0.3]),
        "schedule": st.sampled_from(["cosine", "constant"]),
        "warmup_steps": st.integers(0, 6),
        "min_lr_ratio": st.sampled_from([0.0, 0.2]),
    }
)
MORE = {
    AdamW: ({}, {"betas": (0.5, 0.6), "eps": 1e-4}),
    Adafactor: ({}, {"beta2_decay": -0.5, "clip_threshold": 2.0}),
}


def rates(model, optimizer, schedule, num_steps: int) -> list[list[float]]:
    found = []
    for _ in range(num_steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("kind", MORE)
@given(before=SETTINGS, after=SETTINGS, num_steps=st.integers(1, 8), max_steps=st.integers(9, 20))
def test_the_settings_of_today_count(kind, before, after, num_steps, max_steps):
    # of the first step the old rate could stay, or of all later ones
    model = nn.Linear(3, 2)
    parts = kind(**before, **MORE[kind][0]).build(model, 12)
    rates(model, *parts, num_steps)
    optimizer_state, schedule_state = (copy.deepcopy(part.state_dict()) for part in parts)

    new = kind(**after, **MORE[kind][1])
    new.update_saved(optimizer_state, schedule_state, max_steps)
    optimizer, schedule = new.build(model, max_steps)
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(schedule_state)
    expected = [after["lr"] * new.factor(num_steps + n, max_steps) for n in range(4)]
    for got, want in zip(rates(model, optimizer, schedule, 4), expected, strict=True):
        assert got == pytest.approx([want, want])
    fresh, _ = new.build(model, max_steps)
    for group, right in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        for name in group.keys() - {"params", "lr"}:
            assert group[name] == right[name], name


def test_the_first_step_of_a_resumed_run_has_the_new_rate(tmp_path):
    words = ("trainer.log_every_n_steps=1", "optim.schedule=constant", "optim.warmup_steps=0")
    run(tmp_path / "first", *words, "max_steps=2")
    resumed = ("max_steps=4", "optim.lr=1e-4", f"ckpt={last(tmp_path / 'first')}")
    run(tmp_path / "second", *words, *resumed)
    assert rows_of(tmp_path / "second", "optim/lr") == pytest.approx({3: 1e-4, 4: 1e-4})
