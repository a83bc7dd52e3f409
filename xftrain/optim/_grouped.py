"""The base class of optimizers, with parameter groups and the learning rate schedule."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import Schedule
from xftrain.train.composite_optimizer import CompositeOptimizer
from xftrain.train.parameter_groups import ParameterGroup, split_parameters

log = logging.getLogger(__name__)


class GroupedOptimizer(ABC):
    """An optimizer option that splits parameters into groups with separate settings.

    Each subclass declares the first three arguments again, since the keys of an option are read
    from the signature of its own class.

    Args:
        lr: base learning rate, which the schedule multiplies by a factor in each step.
        weight_decay: weight decay of matrices; norms, biases and embeddings have none.
        param_groups: entries with `match`, a pattern of parameter names, and optionally `lr`,
            `weight_decay` (of all matching parameters) and `optimizer`, another option of `optim`
            that steps them. The first matching entry applies.
        others: the option that steps norms, biases and embeddings, if this optimizer steps only
            matrices; None if it steps all parameters.

    Attributes:
        only_hidden_matrices: whether `others` steps the matrices outside of the blocks, too, such
            as the output matrix. The groups of this optimizer have `stacked_rows` then.
    """

    only_hidden_matrices: ClassVar[bool] = False

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        param_groups: Sequence[Mapping[str, Any]] = (),
        others: GroupedOptimizer | None = None,
    ) -> None:
        self.lr, self.weight_decay, self.others = lr, weight_decay, others
        self.param_groups = param_groups
        self._steppers = [self._stepper(index) for index in range(len(param_groups))]

    @abstractmethod
    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Creates torch's optimizer from groups with `params`, `lr` and `weight_decay`."""

    @abstractmethod
    def state_bytes(self, parameter: torch.Tensor) -> int:
        """The size of the optimizer state of a parameter in bytes."""

    @property
    def has_several_optimizers(self) -> bool:
        """Whether another option steps some of the parameters."""
        return self.others is not None or any(option is not self for option in self._steppers)

    def build(
        self, model: nn.Module, schedule: Schedule, max_steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Builds the optimizer, and the schedule applied to the base learning rate of each group.

        Raises:
            ConfigError: the model has no trained parameter, or a pattern matches nothing.
        """
        by_option: dict[int, tuple[GroupedOptimizer, list[dict[str, Any]]]] = {}
        for group in self._split(model):
            option = self._option_for(group)
            by_option.setdefault(id(option), (option, []))[1].append(self._settings(group, option))
        if not by_option:
            raise ConfigError("optim has no parameters to train: the model has none.")
        parts = [option.make(groups) for option, groups in by_option.values()]
        optimizer = parts[0] if len(parts) == 1 else CompositeOptimizer(parts)
        return optimizer, LambdaLR(
            optimizer, lambda step: schedule_factor(schedule, step, max_steps)
        )

    def update_saved(
        self,
        saved_optimizer: dict[str, Any],
        saved_lr_scheduler: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler,
    ) -> None:
        """Replaces the settings in a saved state by those of this run, group by group, in place.

        Otherwise torch would restore the settings of the checkpoint and ignore the configuration.
        """
        assert isinstance(lr_scheduler, LambdaLR)
        step, base_lrs = saved_lr_scheduler["last_epoch"], lr_scheduler.base_lrs
        groups = zip(saved_optimizer["param_groups"], optimizer.param_groups, strict=True)
        factors = zip(base_lrs, lr_scheduler.lr_lambdas, strict=True)
        for (saved, own), (base_lr, factor) in zip(groups, factors, strict=True):
            saved.update({key: value for key, value in own.items() if key != "params"})
            saved.update(lr=base_lr * factor(step), initial_lr=base_lr)
        saved_lr_scheduler["base_lrs"] = list(base_lrs)

    def option_by_parameter(self, model: nn.Module) -> dict[nn.Parameter, GroupedOptimizer]:
        """The option that steps each trained parameter.

        Raises:
            ConfigError: a pattern of `param_groups` matches nothing.
        """
        return {
            parameter: self._option_for(group)
            for group in self._split(model)
            for parameter in group.parameters
        }

    def _split(self, model: nn.Module) -> list[ParameterGroup]:
        options: dict[int | None, GroupedOptimizer] = {None: self}
        options.update(enumerate(self._steppers))
        with_hidden = {entry for entry, option in options.items() if option.only_hidden_matrices}
        patterns = [str(entry["match"]) for entry in self.param_groups]
        return split_parameters(model, patterns, with_hidden)

    def _stepper(self, index: int) -> GroupedOptimizer:
        """The option that steps the parameters of an entry of `param_groups`, before `others`."""
        node = self.param_groups[index].get("optimizer")
        if node is None:
            return self
        key = f"optim.param_groups[{index}].optimizer"
        node = {"name": node} if isinstance(node, str) else node
        option = registry.build(checked_option(key, node))
        if not isinstance(option, GroupedOptimizer):
            raise ConfigError(
                f"{key} must be an option of optim that derives from GroupedOptimizer, got "
                f"{type(option).__name__}."
            )
        return option

    def _option_for(self, group: ParameterGroup) -> GroupedOptimizer:
        option = self if group.entry is None else self._steppers[group.entry]
        if option.others is None:
            return option
        is_own = group.decays if not option.only_hidden_matrices else group.stacked_rows is not None
        return option if is_own else option.others

    def _settings(self, group: ParameterGroup, option: GroupedOptimizer) -> dict[str, Any]:
        """The parameter group as the dict that torch's optimizers take."""
        entry = {} if group.entry is None else self.param_groups[group.entry]
        lr, weight_decay = entry.get("lr"), entry.get("weight_decay")
        if weight_decay is None:
            weight_decay = option.weight_decay if group.decays else 0.0
        settings = {
            "params": group.parameters,
            "lr": option.lr if lr is None else lr,
            "weight_decay": weight_decay,
        }
        if group.stacked_rows is not None:
            settings["stacked_rows"] = group.stacked_rows
        if group.entry is None:
            return settings if option is self else settings | {"name": "others"}
        log.info(
            "optim.param_groups[%d], %s: %s, learning rate %g, weight decay %g, tensors: %d",
            *(group.entry, entry["match"], type(option).__name__, settings["lr"], weight_decay),
            len(group.parameters),
        )
        return settings | {"name": str(group.entry)}


def schedule_factor(schedule: Schedule, step: int, max_steps: int) -> float:
    """The schedule's factor of the base learning rate at a step, checked.

    Raises:
        RunError: the factor is not a finite number >= 0, and would destroy the weights.
    """
    factor = schedule.factor(step, max_steps)
    if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
        raise RunError(
            f"schedule: {type(schedule).__name__}.factor({step}, {max_steps}) must return a finite "
            f"number >= 0, got {factor!r}."
        )
    return factor
