"""What a resumed run takes from its checkpoint: counts, learning rates, and moments of weights.

A checkpoint may come from anyone. Lightning and torch restore whatever it holds, also a flag of an
optimizer that would train uphill, and an attribute that takes the place of a method.
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

# What torch's optimizers keep for each weight; of Adafactor the second for matrices.
_NAMES: dict[type[torch.optim.Optimizer], tuple[set[str], ...]] = {
    torch.optim.AdamW: ({"step", "exp_avg", "exp_avg_sq"},),
    torch.optim.Adafactor: ({"step", "variance"}, {"step", "row_var", "col_var"}),
}
# Settings of torch's optimizers that are always today's, also of an optimizer of the user's own.
_FLAGS = {"amsgrad", "capturable", "centered", "decoupled_weight_decay", "differentiable"}
_FLAGS |= {"foreach", "fused", "maximize", "nesterov"}
# Lightning's names of the scaler's state, the second of former versions, which it reads as well.
_SCALER, _SCALERS = "MixedPrecision", ("MixedPrecision", "native_amp_scaling_state")
_LARGEST_SCALE = 2.0**64
_RATES = {"lr", "initial_lr"}  # of a group; `update_saved` computes them for the resumed step
_OF_SCHEDULE = {"last_epoch", "_step_count", "_last_lr", "base_lrs"}

log = logging.getLogger(__name__)

State = dict[str, Any]


def check_loops(saved: Any, current: Mapping[str, Any]) -> None:
    """Refuse counts of batches and steps with other names or types than this run's own.

    Args:
        saved: the state of Lightning's `fit_loop` in the checkpoint.
        current: the same of this run, before anything is restored.

    Raises:
        ValueError: which entry is wrong.
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
    """Whether a value has the same names in it, and counts and flags where this run has them."""
    if isinstance(own, dict):
        is_alike = isinstance(saved, dict) and saved.keys() == own.keys()
        return is_alike and all(_has_form(saved[key], value) for key, value in own.items())
    return type(saved) is bool if isinstance(own, bool) else is_count(saved)


def keep_own_scaler(checkpoint: dict[str, Any], scaler: torch.amp.GradScaler | None) -> None:
    """Take the scale of 16-mixed, and not the factors by which it changes, as Lightning would.

    Raises:
        ValueError: it is no scale.
    """
    held = [checkpoint.pop(name) for name in _SCALERS if name in checkpoint]
    if not held or scaler is None:
        return
    own, scale, tracker = scaler.state_dict(), held[0]["scale"], held[0]["_growth_tracker"]
    is_known = is_count(tracker) and tracker < own["growth_interval"]  # else it never grows again
    if not (is_known and is_number(scale) and 0 < scale <= _LARGEST_SCALE):
        raise ValueError("the scale of its losses in 16 bits is not one that training comes to")
    checkpoint[_SCALER] = {**own, "scale": scale, "_growth_tracker": tracker}


def states_of(checkpoint: Mapping[str, Any]) -> tuple[State, State]:
    """The state of the optimizer and of its schedule, whose numbers are numbers.

    Raises:
        ValueError: it is not what torch saves.
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
        optimizer: of this run.
        saved: the state of the optimizer in the checkpoint.
        ckpt: the checkpoint, for the message.

    Raises:
        ConfigError: how many parameters their groups have.
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
    """Reduce saved states to what changes in training; all else is as this run has it.

    Args:
        optimizer: of this run, before it is restored.
        schedule: of this run.
        saved: the states that will be restored, changed in place. `update_saved` has put this
            run's learning rates into them, and `refuse_other_groups` has compared their groups.
        ckpt: the checkpoint, for the message.

    Raises:
        ConfigError: there are states of other weights, other tensors, or values of other types.
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
    """Keeps the saved learning rates, and of an optimizer of the user's own its other values."""
    reduced = []
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for part, (own, held) in zip(_parts_by_group(optimizer), groups, strict=True):
        name = type(part).__name__
        is_built_in = _kind_of(part) is not None and not _is_own(part)
        kept = held.keys() & _RATES if is_built_in else held.keys() - _FLAGS
        taken = {key: value for key, value in held.items() if key in kept and key != "params"}
        for key, value in taken.items():
            if not _is_like(value, own.get(key)):
                raise ValueError(f"{one_line(str(key))} of its optimizer is not what {name} saves")
        reduced.append({**own, **taken, "params": held["params"]})
    saved["param_groups"] = reduced


def _take_moments(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Refuses a state that would end the first step, or make the weights wrong in it.

    Fused kernels go through a moment as they go through its weight, whatever its shape and strides
    are, so that others would have them read and write beyond its end.
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
            is_right = (_is_own(part) or state.keys() in _NAMES[kind]) and all(
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
    """The value with the strides of the weight, or contiguous where it has another shape."""
    if value.shape != weight.shape:
        return value.contiguous()
    if value.stride() == weight.stride():
        return value
    return torch.empty_strided(weight.shape, weight.stride(), dtype=value.dtype).copy_(value)


def _parts_by_group(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """What steps each group: the optimizer itself, or a part of it."""
    parts = optimizer.parts if isinstance(optimizer, CompositeOptimizer) else [optimizer]
    return [part for part in parts for _ in part.param_groups]


def _kind_of(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    return next((kind for kind in _NAMES if isinstance(optimizer, kind)), None)


def _is_own(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its class is the user's own, which may keep more than the one that it builds on."""
    return not type(optimizer).__module__.startswith(("torch.", "xftrain."))


def _fits(name: str, value: object, weight: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if name == "step":
        return value.numel() == 1 and 0 <= float(value) < math.inf
    shape = list(weight.shape)
    if name in ("row_var", "col_var"):  # a row of a matrix has 1 for its columns
        shape[-1 if name == "row_var" else -2] = 1
    return list(value.shape) == shape


def _reduce_schedule(schedule: Any, saved: State) -> None:
    """Keeps the counts and learning rates, and of a schedule of the user's own its other values."""
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
    """Whether a saved value may stand where this run has `own`."""
    if own is None:  # as yet
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
