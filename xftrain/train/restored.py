"""Limits what a run restores from a checkpoint: counts, learning rates and moments.

A checkpoint is untrusted. Lightning and torch restore whatever it holds, for example the flag
`maximize` of an optimizer, or an attribute that replaces a method.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from xftrain.checkpoint.plain_values import is_count, is_number
from xftrain.errors import ConfigError
from xftrain.kernels.batched_muon import BatchedMuon
from xftrain.train.composite_optimizer import CompositeOptimizer
from xftrain.utils.printable import one_line

# Keys of a weight's state in built-in optimizers; Adafactor's second set is for matrices.
_STATE_KEYS: dict[type[torch.optim.Optimizer], tuple[set[str], ...]] = {
    torch.optim.AdamW: ({"step", "exp_avg", "exp_avg_sq"},),
    torch.optim.Adafactor: ({"step", "variance"}, {"step", "row_var", "col_var"}),
    BatchedMuon: ({"momentum_buffer"},),
}
# Settings of torch's optimizers that are never restored, for a user's optimizer neither.
_UNRESTORED_SETTINGS = {
    "amsgrad",
    "capturable",
    "centered",
    "decoupled_weight_decay",
    "differentiable",
}
_UNRESTORED_SETTINGS |= {"foreach", "fused", "maximize", "nesterov"}
# Lightning's keys for GradScaler's state; it still reads the second, older one.
_SCALER_KEY, _SCALER_KEYS = "MixedPrecision", ("MixedPrecision", "native_amp_scaling_state")
_LARGEST_SCALE = 2.0**64
_LEARNING_RATE_KEYS = {"lr", "initial_lr"}  # keys of a group that `update_saved` sets
_SCHEDULE_KEYS = {"last_epoch", "_step_count", "_last_lr", "base_lrs"}

log = logging.getLogger(__name__)

State = dict[str, Any]


def check_loops(saved: Any, current: Mapping[str, Any]) -> None:
    """Checks that the saved counts of batches and steps have the keys and types of this run's.

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
        raise ValueError("its training loop does not hold the state of one data loader")
    if not is_count(saved["epoch_loop.state_dict"].get("_batches_that_stepped", 0)):
        raise ValueError("the number of steps in its training loop is not a count")


def _has_form(saved: Any, own: Any) -> bool:
    """Whether a value has the keys of this run's value, with counts and flags as values."""
    if isinstance(own, dict):
        is_alike = isinstance(saved, dict) and saved.keys() == own.keys()
        return is_alike and all(_has_form(saved[key], value) for key, value in own.items())
    return type(saved) is bool if isinstance(own, bool) else is_count(saved)


def restore_loss_scale(checkpoint: dict[str, Any], scaler: torch.amp.GradScaler | None) -> None:
    """Restores the loss scale of 16-mixed, but keeps the growth settings of this run.

    Raises:
        ValueError: the saved scale is not valid.
    """
    saved = [checkpoint.pop(name) for name in _SCALER_KEYS if name in checkpoint]
    if not saved or scaler is None:
        return
    own, scale, tracker = scaler.state_dict(), saved[0]["scale"], saved[0]["_growth_tracker"]
    # with a larger tracker the scale would never grow again
    is_known = is_count(tracker) and tracker < own["growth_interval"]
    if not (is_known and is_number(scale) and 0 < scale <= _LARGEST_SCALE):
        raise ValueError("the loss scale of its GradScaler is not one that training reaches")
    checkpoint[_SCALER_KEY] = {**own, "scale": scale, "_growth_tracker": tracker}


def checked_states(checkpoint: Mapping[str, Any]) -> tuple[State, State]:
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
        raise ValueError("its learning rate schedule has more steps than the training")
    if not all(map(is_number, schedule["_last_lr"])):
        raise ValueError("a learning rate of its schedule is not a number")
    if not isinstance(optimizer["state"], dict):
        raise ValueError("the state of its optimizer is not a mapping")
    if not optimizer["state"] and checkpoint["global_step"]:
        log.warning("ckpt holds no optimizer state: the moments start from zero.")
    for group in optimizer["param_groups"]:
        if not isinstance(group, dict) or not all(type(key) is int for key in group["params"]):
            raise ValueError("a parameter group of its optimizer is not one that torch saves")
    return optimizer, schedule


def refuse_other_groups(optimizer: torch.optim.Optimizer, saved: State, ckpt: object) -> None:
    """Checks that a saved state has the parameter groups of this run's optimizer.

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
            f"parameters, and this run's {type(optimizer).__name__} has {own}; set optim as in its "
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
        _check_moments(optimizer, saved[0])
        _reduce_schedule(schedule, saved[1])
    except ValueError as error:
        raise ConfigError(
            f"ckpt={ckpt} cannot be resumed: {error}; give another one, or none to train from the "
            "start."
        ) from error


def _reduce_groups(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Reduces saved groups to their learning rates; a user's optimizer keeps its other values."""
    reduced = []
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for part, (own, held) in zip(_parts_by_group(optimizer), groups, strict=True):
        name = type(part).__name__
        is_built_in = _torch_class(part) is not None and not _may_save_more(part)
        kept = (
            held.keys() & _LEARNING_RATE_KEYS if is_built_in else held.keys() - _UNRESTORED_SETTINGS
        )
        taken = {key: value for key, value in held.items() if key in kept and key != "params"}
        for key, value in taken.items():
            if not _has_type_of(value, own.get(key)):
                raise ValueError(f"{one_line(str(key))} of its optimizer is not what {name} saves")
        reduced.append({**own, **taken, "params": held["params"]})
    saved["param_groups"] = reduced


def _check_moments(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Checks the moments, which could make the first step fail or corrupt the weights.

    Fused kernels index a moment with the strides of its weight, so they would read and write out
    of bounds if the moment had another layout.

    Raises:
        ValueError: a state has other keys, types or shapes than its weight needs.
    """
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    groups = zip(_parts_by_group(optimizer), optimizer.param_groups, strict=True)
    parts = [part for part, group in groups for _ in group["params"]]
    by_key = dict(zip(keys, weights, strict=True))
    part_by_key = dict(zip(keys, parts, strict=True))
    if len(by_key) < len(weights) or not saved["state"].keys() <= by_key.keys():
        raise ValueError("its optimizer has a state for a weight that this model lacks")
    for key, state in saved["state"].items():
        part = part_by_key[key]
        kind = _torch_class(part)
        is_right = isinstance(state, dict)
        if is_right and kind is not None:
            known = set().union(*_STATE_KEYS[kind])
            is_right = (_may_save_more(part) or state.keys() in _STATE_KEYS[kind]) and all(
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


def _torch_class(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    return next((kind for kind in _STATE_KEYS if isinstance(optimizer, kind)), None)


def _may_save_more(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a class of the user's may save more keys than the torch class it derives from."""
    kind = type(optimizer)
    return kind not in _STATE_KEYS and not getattr(kind, "saves_as_base", False)


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
    """Reduces the saved schedule to counts and learning rates; a user's keeps its other values."""
    own = schedule.state_dict()
    if type(schedule) is LambdaLR:
        taken = {key: value for key, value in saved.items() if key in _SCHEDULE_KEYS}
    else:
        taken = {key: value for key, value in saved.items() if key in own}
    for key, value in taken.items():
        if not _has_type_of(value, own[key]):
            raise ValueError(f"{key} of its schedule is not what {type(schedule).__name__} saves")
    saved.clear()
    saved.update({**own, **taken})


def _has_type_of(value: Any, own: Any) -> bool:
    """Whether a saved value has the type and structure of this run's value `own`."""
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
