"""A resumed run has the learning rate and the settings of today from its first step on."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.train.runs import last, rows_of, run
from xftrain.optim.adafactor import Adafactor
from xftrain.optim.adamw import AdamW
from xftrain.schedule.constant import Constant
from xftrain.schedule.cosine import Cosine

SETTINGS = st.fixed_dictionaries(
    {"lr": st.sampled_from([1e-3, 0.02, 0.5]), "weight_decay": st.sampled_from([0.0, 0.3])}
)
SCHEDULES = st.one_of(
    st.builds(Constant, warmup_steps=st.integers(0, 6)),
    st.builds(Cosine, warmup_steps=st.integers(0, 6), min_lr_ratio=st.sampled_from([0.0, 0.2])),
)
STEPS = {"num_steps": st.integers(1, 8), "max_steps": st.integers(9, 20)}
SCHEDULED = {"schedule": SCHEDULES, "new_schedule": SCHEDULES}
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


def resumed(parts, new, model, schedule, max_steps):
    """Builds the optimizer and the scheduler of a run that resumes the state of `parts`."""
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    built = new.build(model, schedule, max_steps)
    new.update_saved(*saved, *built)
    for part, state in zip(built, saved, strict=True):
        part.load_state_dict(state)
    return built


@pytest.mark.parametrize("kind", MORE)
@given(before=SETTINGS, after=SETTINGS, **SCHEDULED, **STEPS)
def test_the_settings_of_today_count(
    kind, before, after, schedule, new_schedule, num_steps, max_steps
):
    # of the first step the old rate could stay, or of all later ones
    model = nn.Linear(3, 2)
    parts = kind(**before, **MORE[kind][0]).build(model, schedule, 12)
    rates(model, *parts, num_steps)
    new = kind(**after, **MORE[kind][1])
    optimizer, lr_scheduler = resumed(parts, new, model, new_schedule, max_steps)
    expected = [after["lr"] * new_schedule.factor(num_steps + n, max_steps) for n in range(4)]
    for got, want in zip(rates(model, optimizer, lr_scheduler, 4), expected, strict=True):
        assert got == pytest.approx([want, want])
    fresh, _ = new.build(model, new_schedule, max_steps)
    for group, right in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        for name in group.keys() - {"params", "lr"}:
            assert group[name] == right[name], name


@pytest.mark.parametrize("kind", MORE)
@given(
    before=st.tuples(st.sampled_from([0.01, 0.02]), st.sampled_from([0.3, 0.5])),
    after=st.tuples(st.sampled_from([0.01, 0.02]), st.sampled_from([0.3, 0.5])),
    **SCHEDULED,
    **STEPS,
)
def test_each_group_resumes_with_its_own_learning_rate(
    kind, before, after, schedule, new_schedule, num_steps, max_steps
):
    # one learning rate was written into every group
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))

    def option(rates):
        return kind(lr=rates[0], param_groups=[{"match": "1.*", "lr": rates[1]}])

    parts = option(before).build(model, schedule, 12)
    rates(model, *parts, num_steps)
    optimizer, lr_scheduler = resumed(parts, option(after), model, new_schedule, max_steps)
    factors = [new_schedule.factor(num_steps + n, max_steps) for n in range(3)]
    for got, factor in zip(rates(model, optimizer, lr_scheduler, 3), factors, strict=True):
        assert got == pytest.approx([lr * factor for lr in after for _ in ("matrix", "vector")])


def test_the_first_step_of_a_resumed_run_has_the_new_rate(tmp_path):
    words = ("trainer.log_every_n_steps=1", "schedule=constant", "schedule.warmup_steps=0")
    run(tmp_path / "first", *words, "max_steps=2")
    words_then = ("max_steps=4", "optim.lr=1e-4", f"ckpt={last(tmp_path / 'first')}")
    run(tmp_path / "second", *words, *words_then)
    assert rows_of(tmp_path / "second", "optim/lr") == pytest.approx({3: 1e-4, 4: 1e-4})
