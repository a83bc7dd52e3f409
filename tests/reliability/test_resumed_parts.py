"""What a resumed run takes from its checkpoint: what changes in training, of the right types."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.reliability.test_checkpoint_values import Content, _set
from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError
from xftrain.train.restored import keep_own_settings


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Content:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return read_checkpoint(last(run_dir))


GROUP = ("optimizer_states", 0, "param_groups", 0)
STATE = ("optimizer_states", 0, "state")
SCHEDULE = ("lr_schedulers", 0)
FIT = ("loops", "fit_loop")
BATCHES = (*FIT, "epoch_loop.batch_progress")
START = ("callbacks", "RunStart")
EVENTS = (*START, "loggers", "events")
NAN, INF = float("nan"), float("inf")

WRONG: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a weight named by a number that is none": ((*GROUP, "params", 0), INF),
    "a weight named by a list": ((*GROUP, "params", 0), []),
    "a weight named twice": ((*GROUP, "params", 0), 1),
    "a group that is a list": (GROUP, [1]),
    "a state of an unknown weight": ((*STATE, 99), {"step": torch.tensor(1.0)}),
    "a state that is a tensor": ((*STATE, 1), torch.zeros(0)),
    "a moment of one number": ((*STATE, 0, "exp_avg"), torch.zeros(1, 1)),
    "a moment of integers": ((*STATE, 0, "step"), torch.tensor(1)),
    "a moment of no name": ((*STATE, 0, "max_exp_avg_sq"), torch.zeros(1)),
    "a schedule's step that is a list": ((*SCHEDULE, "_step_count"), [[1]]),
    "a schedule's step that is huge": ((*SCHEDULE, "last_epoch"), 2**2000),
    "a schedule's step that is NaN": ((*SCHEDULE, "last_epoch"), NAN),
    "a schedule ahead of the training": ((*SCHEDULE, "last_epoch"), 2**52),
    "two optimizers": (("optimizer_states",), [{}, {}]),
    "a metric named as a formula": ((*START, "metrics", '=HYPERLINK("http://x")'), 1.0),
    "a learning rate that is a text": ((*SCHEDULE, "_last_lr"), ["x"]),
    "counts without names": ((*BATCHES, "current"), {}),
    "counts with the name of a method": ((*BATCHES, "current", "reset"), 1),
    "a flag that is a count": ((*BATCHES, "is_last_batch"), 7),
    "a count that is a list": ((*FIT, "epoch_progress", "current", "completed"), []),
    "two data loaders": ((*FIT, "state_dict", "combined_loader"), [{"next_step": 1}] * 2),
    "steps that are a list": ((*FIT, "epoch_loop.state_dict", "_batches_that_stepped"), []),
    "a file of negative size": ((*EVENTS, "x"), -5),
    "a file of infinite size": ((*EVENTS, "x"), INF),
    "rows below 0": ((*START, "loggers", "metrics.csv"), -1),
    "a metric that is a tensor": ((*START, "metrics", "x"), torch.zeros(2)),
    "a validation before the first": ((*START, "validated_at"), -2),
    "a best loss that is NaN": (("callbacks", "Checkpoint", "best_loss"), NAN),
    "an accuracy of text": (("callbacks", "Solved", "accuracy"), "x"),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", WRONG)
def test_a_part_of_another_type_ends_in_a_sentence(tmp_path, content, kind):
    keys, value = WRONG[kind]
    path = tmp_path / "hostile.ckpt"
    torch.save(_set(*keys)(value, content), path)
    with pytest.raises(ConfigError, match="cannot be resumed") as refused:
        run(tmp_path / "run", f"ckpt={path}", "max_steps=2")
    said = str(refused.value)
    assert said.startswith(f"ckpt={path} ") and said.endswith(".") and "\n" not in said


@pytest.mark.fault("hostile checkpoint")
def test_settings_of_the_optimizer_and_the_schedule_are_this_runs_own(tmp_path, content):
    # maximize trained uphill, amsgrad and fused ended the first step
    hostile: Any = copy.deepcopy(content)
    flags = {"maximize": True, "amsgrad": 0.5, "differentiable": NAN, "fused": None}
    for group in hostile["optimizer_states"][0]["param_groups"]:
        group.update(flags, betas=(0.0, 0.0), foreach=True, decays=True, unknown=[1])
    hostile["lr_schedulers"][0].update(get_lr=1, optimizer=2, lr_lambdas=[{"x": 1}, None])
    for name, held in (("good", content), ("hostile", hostile)):
        torch.save(held, tmp_path / f"{name}.ckpt")
        run(tmp_path / name, f"ckpt={tmp_path / name}.ckpt", "max_steps=3")
    assert same_weights(last(tmp_path / "good"), last(tmp_path / "hostile"))
    saved = read_checkpoint(last(tmp_path / "hostile"))["optimizer_states"][0]["param_groups"]
    assert all("unknown" not in group and not group["maximize"] for group in saved)


@pytest.mark.fault("hostile checkpoint")
def test_a_moment_with_other_strides_means_what_it_holds(tmp_path, content):
    # a fused kernel read it in the order of its bytes, and past their end
    hostile: Any = copy.deepcopy(content)
    for state in hostile["optimizer_states"][0]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].t().contiguous().t() if state[name].ndim > 1 else state[name]
    for name, held in (("good", content), ("hostile", hostile)):
        torch.save(held, tmp_path / f"{name}.ckpt")
        run(tmp_path / name, f"ckpt={tmp_path / name}.ckpt", "max_steps=3")
    assert same_weights(last(tmp_path / "good"), last(tmp_path / "hostile"))


class OwnSchedule(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer):
        self.losses, self.best, self.is_warm = [1.0], INF, False
        super().__init__(optimizer)

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


def _own() -> tuple[torch.optim.Optimizer, OwnSchedule]:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight], "k": 0, "mode": False}], lr=0.1, momentum=0.5)
    return optimizer, OwnSchedule(optimizer)


def test_an_optimizer_and_a_schedule_of_ones_own_keep_what_they_have_saved():
    (saving, schedule), (optimizer, resumed) = _own(), _own()
    saving.param_groups[0].update(k=7, mode=True, maximize=True, lazily=3, lr=0.025)
    schedule.losses, schedule.best, schedule.is_warm = [1.0, 0.5], 0.5, True
    saved = saving.state_dict(), schedule.state_dict()
    keep_own_settings(optimizer, resumed, saved, "x.ckpt")
    optimizer.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    (group,) = optimizer.param_groups
    assert (group["k"], group["mode"], group["lazily"], group["lr"]) == (7, True, 3, 0.025)
    assert not group["maximize"]
    assert resumed.losses == [1.0, 0.5] and resumed.best == 0.5 and resumed.is_warm


class OwnAdamW(torch.optim.AdamW):
    """Keeps more in its groups and of each weight."""


def test_an_optimizer_built_on_a_known_one_keeps_more():
    weight = torch.nn.Parameter(torch.ones(2))
    saving, resumed = (OwnAdamW([{"params": [weight], "k": 0}]) for _ in range(2))
    weight.grad = torch.ones(2)
    saving.step()
    saving.param_groups[0]["k"] = 7
    saving.state[weight]["mine"] = torch.ones(3)
    _, schedule = _own()
    saved = saving.state_dict(), schedule.state_dict()
    keep_own_settings(resumed, schedule, saved, "x.ckpt")
    resumed.load_state_dict(saved[0])
    assert resumed.param_groups[0]["k"] == 7
    assert torch.equal(resumed.state[weight]["mine"], torch.ones(3))
    saved[0]["state"][0]["exp_avg"] = torch.ones(1)
    with pytest.raises(ConfigError, match="is not what OwnAdamW saves"):
        keep_own_settings(resumed, schedule, (saved[0], schedule.state_dict()), "x.ckpt")


@pytest.mark.parametrize(
    ("place", "key", "value"), [(0, "k", "x"), (0, "mode", 3), (1, "best", []), (1, "losses", [""])]
)
def test_values_of_other_types_are_refused_for_classes_of_ones_own(place, key, value):
    (optimizer, schedule) = _own()
    saved: Any = optimizer.state_dict(), schedule.state_dict()
    (saved[1] if place else saved[0]["param_groups"][0])[key] = value
    with pytest.raises(ConfigError, match=rf"^ckpt=x.ckpt cannot be resumed: {key} of its"):
        keep_own_settings(optimizer, schedule, saved, "x.ckpt")
