"""Limits what a run restores from a checkpoint: counts, learning rates and moments.

A checkpoint may come from anyone. Lightning and torch restore whatever it holds, for example the
flag `maximize` of an optimizer, or an attribute that replaces a method.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from xftrain.errors import ConfigError
from xftrain.printable import one_line
from xftrain.training.composite_optimizer import CompositeOptimizer
from xftrain.training.plain_values import is_count, is_number

# The state of torch's optimizers for each weight; the second form of Adafactor is for matrices.
_NAMES: dict[type[torch.optim.Optimizer], tuple[set[str], ...]] = {
    torch.optim.AdamW: ({"step", "exp_avg", "exp_avg_sq"},),
    torch.optim.Adafactor: ({"step", "variance"}, {"step", "row_var", "col_var"}),
}
# Settings of torch's optimizers that always come from this run, also for a user's optimizer.
_FLAGS = {"amsgrad", "capturable", "centered", "decoupled_weight_decay", "differentiable"}
_FLAGS |= {"foreach", "fused", "maximize", "nesterov"}
# Lightning's names for the state of the scaler; it still reads the second, older one.
_SCALER, _SCALERS = "MixedPrecision", ("MixedPrecision", "native_amp_scaling_state")
_LARGEST_SCALE = 2.0**64
_RATES = {"lr", "initial_lr"}  # keys of a group that `update_saved` sets
_OF_SCHEDULE = {"last_epoch", "_step_count", "_last_lr", "base_lrs"}

log = logging.getLogger(__name__)

State = dict[str, Any]


def check_loops(saved: Any, current: Mapping[str, Any]) -> None:
    """Refuses counts of batches and steps with other names or types than those of this run.

    Args:
        saved: the state of Lightning's `fit_loop` in the checkpoint.
        current: the same state of this run, before anything is restored.

    Raises:
        ValueError: an entry is wrong; the message names it.
    """
    for key, own in current.items():
        if not key.endswith("state_dict") and not _has_form(saved[key], own):
            raise ValueError(f"{key} of its training loop has other counts than Lightning saves")
    loaders = saved["state_dict"]["combined_loader"]
    if not isinstance(loaders, list) or len(loaders) != 1 or not is_count(loaders[0]["next_step"]):
        raise ValueError("its training loop has not the state of one data loader")
    if not is_count(saved["epoch_loop.state_dict"].get("_batches_that_stepped", 0)):
        raise ValueError("the number of steps in its training loop is not a count")


def _has_form(saved: Any, own: Any) -> bool:
    """Whether a value has the same keys as that of this run, with counts and flags as values."""
    if isinstance(own, dict):
        is_alike = isinstance(saved, dict) and saved.keys() == own.keys()
        return is_alike and all(_has_form(saved[key], value) for key, value in own.items())
    return type(saved) is bool if isinstance(own, bool) else is_count(saved)


def keep_own_scaler(checkpoint: dict[str, Any], scaler: torch.amp.GradScaler | None) -> None:
    """Restores the loss scale of 16-mixed, but keeps the growth settings of this run.

    Raises:
        ValueError: the saved scale is not valid.
    """
    held = [checkpoint.pop(name) for name in _SCALERS if name in checkpoint]
    if not held or scaler is None:
        return
    own, scale, tracker = scaler.state_dict(), held[0]["scale"], held[0]["_growth_tracker"]
    # with a larger tracker the scale would never grow again
    is_known = is_count(tracker) and tracker < own["growth_interval"]
    if not (is_known and is_number(scale) and 0 < scale <= _LARGEST_SCALE):
        raise ValueError("the scale of its losses in 16 bits is not one that training comes to")
    checkpoint[_SCALER] = {**own, "scale": scale, "_growth_tracker": tracker}


def states_of(checkpoint: Mapping[str, Any]) -> tuple[State, State]:
    """The states of the optimizer and of its schedule, with the types of numbers checked.

    Raises:
        ValueError: a state does not have the form that torch saves.
    """
    if not len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 1:
        raise ValueError("it holds the states of more than one optimizer, or of none")
    optimizer, schedule = checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    if not (is_count(schedule["last_epoch"]) and is_count(schedule["_step_count"])):
        raise ValueError("the number of steps of its learning rate schedule is not a count")
    if schedule["last_epoch"] > checkpoint["global_step"]:
        raise ValueError("its learning rate schedule is further than the training")
    if not all(map(is_number, schedule["_last_lr"])):
        raise ValueError("a learning rate of its schedule is not a number")
    if not isinstance(optimizer["state"], dict):
        raise ValueError("the state of its optimizer is not a mapping")
    if not optimizer["state"] and checkpoint["global_step"]:
        log.warning("ckpt holds no state of its optimizer: its moments begin anew.")
    for group in optimizer["param_groups"]:
        if not isinstance(group, dict) or not all(type(key) is int for key in group["params"]):
            raise ValueError("a parameter group of its optimizer is not one that torch saves")
    return optimizer, schedule


def refuse_other_groups(optimizer: torch.optim.Optimizer, saved: State, ckpt: object) -> None:
    """Refuses a state whose parameter groups are not those of this run's optimizer.

    Args:
        optimizer: the optimizer of this run.
        saved: the state of the optimizer in the checkpoint.
        ckpt: the checkpoint, for the message.

    Raises:
        ConfigError: the groups differ; the message has the number of parameters of each.
    """
    held = [len(group["params"]) for group in saved["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if held != own:
        raise ConfigError(
            f"ckpt={ckpt} cannot be resumed: its optimizer's parameter groups have {held} "
            f"parameters, and those of this {type(optimizer).__name__} {own}; set optim as in its "
            "run's config.yaml, or give another checkpoint."
        )


def keep_own_settings(
    optimizer: torch.optim.Optimizer, schedule: Any, saved: tuple[State, State], ckpt: object
) -> None:
    """Reduces saved states to the values that training changes; this run keeps its settings.

    Args:
        optimizer: the optimizer of this run, before it is restored.
        schedule: the schedule of this run.
        saved: the states that will be restored, changed in place. `update_saved` has put this
            run's learning rates into them, and `refuse_other_groups` has compared their groups.
        ckpt: the checkpoint, for the message.

    Raises:
        ConfigError: the states belong to other weights, or hold other tensors or types.
    """
    try:
        _reduce_groups(optimizer, saved[0])
        _take_moments(optimizer, saved[0])
        _reduce_schedule(schedule, saved[1])
    except ValueError as error:
        raise ConfigError(
            f"ckpt={ckpt} cannot be resumed: {error}; give another one, or none to start afresh."
        ) from error


def _reduce_groups(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Keeps saved learning rates; for a user's optimizer, also its other values."""
    reduced = []
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for part, (own, held) in zip(_parts_by_group(optimizer), groups, strict=True):
        name = type(part).__name__
        is_built_in = _kind_of(part) is not None and not is_own(part)
        kept = held.keys() & _RATES if is_built_in else held.keys() - _FLAGS
        taken = {key: value for key, value in held.items() if key in kept and key != "params"}
        for key, value in taken.items():
            if not _is_like(value, own.get(key)):
                raise ValueError(f"{one_line(str(key))} of its optimizer is not what {name} saves")
        reduced.append({**own, **taken, "params": held["params"]})
    saved["param_groups"] = reduced


def _take_moments(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Refuses moments that would make the first step fail or corrupt the weights.

    Fused kernels index a moment like its weight, whatever its shape and strides are, so a moment of
    another layout would make them read and write out of bounds.
    """
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    groups = zip(_parts_by_group(optimizer), optimizer.param_groups, strict=True)
    parts = [part for part, group in groups for _ in group["params"]]
    by_key = dict(zip(keys, weights, strict=True))
    part_by_key = dict(zip(keys, parts, strict=True))
    if len(by_key) < len(weights) or not saved["state"].keys() <= by_key.keys():
        raise ValueError("its optimizer has a state of a weight that this model has not")
    for key, state in saved["state"].items():
        part = part_by_key[key]
        kind = _kind_of(part)
        is_right = isinstance(state, dict)
        if is_right and kind is not None:
            known = set().union(*_NAMES[kind])
            is_right = (is_own(part) or state.keys() in _NAMES[kind]) and all(
                _fits(name, value, by_key[key]) for name, value in state.items() if name in known
            )
        if not is_right:
            raise ValueError(
                f"its optimizer's state of a weight of shape {list(by_key[key].shape)} is not what "
                f"{type(part).__name__} saves"
            )
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        saved["state"][key] = {
            **state,
            **{name: _laid_out_as(by_key[key], value) for name, value in tensors.items()},
        }


def _laid_out_as(weight: Tensor, value: Tensor) -> Tensor:
    """The value with the strides of the weight, or contiguous if their shapes differ."""
    if value.shape != weight.shape:
        return value.contiguous()
    if value.stride() == weight.stride():
        return value
    return torch.empty_strided(weight.shape, weight.stride(), dtype=value.dtype).copy_(value)


def _parts_by_group(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer that steps each group: the optimizer itself, or a part of it."""
    parts = optimizer.parts if isinstance(optimizer, CompositeOptimizer) else [optimizer]
    return [part for part in parts for _ in part.param_groups]


def _kind_of(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    return next((kind for kind in _NAMES if isinstance(optimizer, kind)), None)


def is_own(part: object) -> bool:
    """Whether the class is a user's, which may save more than its base class."""
    return not type(part).__module__.startswith(("torch.", "xftrain."))


def _fits(name: str, value: object, weight: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if name == "step":
        return value.numel() == 1 and 0 <= float(value) < math.inf
    shape = list(weight.shape)
    if name in ("row_var", "col_var"):  # row statistics have one column
        shape[-1 if name == "row_var" else -2] = 1
    return list(value.shape) == shape


def _reduce_schedule(schedule: Any, saved: State) -> None:
    """Keeps counts and learning rates; for a user's schedule, also its other values."""
    own = schedule.state_dict()
    if type(schedule) is LambdaLR:
        taken = {key: value for key, value in saved.items() if key in _OF_SCHEDULE}
    else:
        taken = {key: value for key, value in saved.items() if key in own}
    for key, value in taken.items():
        if not _is_like(value, own[key]):
            raise ValueError(f"{key} of its schedule is not what {type(schedule).__name__} saves")
    saved.clear()
    saved.update({**own, **taken})


def _is_like(value: Any, own: Any) -> bool:
    """Whether a saved value has the type and form of the value `own` of this run."""
    if own is None:  # not set yet
        return True
    if isinstance(own, bool) or not isinstance(own, int | float | list | tuple | Tensor):
        return isinstance(value, type(own))
    if isinstance(own, list | tuple):
        if not isinstance(value, list | tuple) or not all(map(is_number, own)):
            return isinstance(value, list | tuple)
        # a list may have grown
        is_whole = len(value) == len(own) or isinstance(own, list)
        return is_whole and all(map(is_number, value))
    return is_number(value) or isinstance(own, Tensor) and isinstance(value, Tensor)
