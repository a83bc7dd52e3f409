"""The share of the base learning rate in every step, by each schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.runs import rows_of, run
from xftrain.config import registry
from xftrain.config.compose import compose, validate
from xftrain.config.option_checks import checked_option
from xftrain.errors import ConfigError, RunError
from xftrain.optim._grouped import schedule_factor
from xftrain.schedule.constant import Constant
from xftrain.schedule.cosine import Cosine
from xftrain.schedule.linear import Linear
from xftrain.schedule.wsd import Wsd


def test_the_cosine_at_known_steps():
    cosine = Cosine(warmup_steps=4, min_lr_ratio=0.2)
    factors = [cosine.factor(step, 104) for step in range(110)]
    assert factors[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0])
    assert factors[29] == pytest.approx(0.2 + 0.8 * (0.5 + math.sqrt(0.5) / 2))  # a quarter
    assert factors[54] == pytest.approx(0.6)  # half way
    assert factors[104:] == pytest.approx([0.2] * 6)  # and stays there


def test_the_constant_schedule_at_known_steps():
    constant = Constant(warmup_steps=1)
    assert [constant.factor(step, 9) for step in (0, 1, 8, 20)] == [0.5, 1.0, 1.0, 1.0]
    assert Constant(warmup_steps=0).factor(0, 9) == 1.0


def test_the_line_at_known_steps():
    linear = Linear(warmup_steps=4)
    factors = [linear.factor(step, 104) for step in range(110)]
    assert factors[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0])
    assert (factors[29], factors[103]) == pytest.approx((0.75, 0.01))
    assert factors[104:] == [0.0] * 6
    assert Linear(warmup_steps=4, min_lr_ratio=0.2).factor(29, 104) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("decay", "half_way"),
    [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))],
)
def test_warmup_stable_decay_at_known_steps(decay, half_way):
    wsd = Wsd(warmup_steps=4, decay_share=0.2, decay=decay, min_lr_ratio=0.1)
    factors = [wsd.factor(step, 100) for step in range(104)]
    assert factors[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0])
    assert factors[4:81] == [1.0] * 77
    assert factors[81] < 1.0
    assert factors[90] == pytest.approx(0.1 + 0.9 * half_way)
    assert factors[100:] == pytest.approx([0.1] * 4)


def test_the_stable_phase_does_not_depend_on_the_number_of_steps():
    wsd = Wsd(warmup_steps=10, decay_share=0.5)
    assert [wsd.factor(step, 100) for step in range(50)] == [
        wsd.factor(step, 1000) for step in range(50)
    ]


@given(
    name=st.sampled_from(registry.option_names("schedule")),
    warmup_steps=st.integers(0, 30),
    max_steps=st.integers(1, 40),  # fewer than the warm-up, too
    min_lr_ratio=st.floats(0, 1),
)
def test_the_learning_rate_rises_and_then_never_does(name, warmup_steps, max_steps, min_lr_ratio):
    node = {"name": name, "warmup_steps": warmup_steps}
    if "min_lr_ratio" in registry.option_schema("schedule", name):
        node["min_lr_ratio"] = min_lr_ratio
    schedule = registry.build(checked_option("schedule", node))
    factors = [schedule.factor(step, max_steps) for step in range(80)]
    least = node.get("min_lr_ratio", 0)
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    rising, falling = factors[: warmup_steps + 1], factors[warmup_steps:]
    assert rising[:-1] == sorted(set(rising[:-1]))
    assert all(b <= a + 1e-12 for a, b in zip(falling, falling[1:], strict=False))
    assert min(falling) >= least - 1e-12


@pytest.mark.parametrize("factor", [math.nan, math.inf, -0.1, None, "1"])
def test_a_schedule_that_returns_no_share_ends_the_run(factor):
    class Mine:
        def factor(self, step, max_steps):
            return factor

    with pytest.raises(RunError, match=r"^schedule: Mine.factor\(3, 9\) must return a finite "):
        schedule_factor(Mine(), 3, 9)


def test_a_run_follows_the_schedule_that_is_chosen(tmp_path):
    words = ("schedule=wsd", "schedule.warmup_steps=1", "schedule.decay_share=0.5")
    last_ratio = ("schedule.min_lr_ratio=0", "optim.lr=0.01", "trainer.log_every_n_steps=1")
    run(tmp_path, *words, *last_ratio, "max_steps=4")
    assert list(rows_of(tmp_path, "optim/lr").values()) == pytest.approx([5e-3, 1e-2, 1e-2, 5e-3])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optim.schedule=constant", "optim.schedule is schedule now: write schedule=<option>."),
        (
            "optim.warmup_steps=0",
            "optim.warmup_steps is schedule.warmup_steps now: write schedule.warmup_steps=<value>.",
        ),
        (
            "+optim.min_lr_ratio=0",
            "optim.min_lr_ratio is schedule.min_lr_ratio now: write schedule.min_lr_ratio=<value>.",
        ),
    ],
)
def test_a_key_of_a_former_version_is_refused_with_its_new_name(typed, said):
    with pytest.raises(ConfigError) as refused:
        validate(compose(typed))
    assert str(refused.value) == said


def test_a_key_of_a_former_version_in_an_experiment_is_refused_with_its_new_name(tmp_path):
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "old.yaml"
    path.write_text("# @package _global_\noptim:\n  warmup_steps: 3\n")
    with pytest.raises(ConfigError, match="optim.warmup_steps is schedule.warmup_steps now"):
        validate(compose("experiment=old", config_dir=tmp_path))
