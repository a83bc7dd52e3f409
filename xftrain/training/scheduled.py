"""What optimizers share: which weights decay, and the rate at every step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


class Scheduled(ABC):
    """An optimizer whose rate rises linearly and is then `cosine` or `constant`.

    Each has these arguments as fields of its own, since fields are read from an option's source;
    it says there what they are.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        schedule: str,
        warmup_steps: int,
        min_lr_ratio: float,
    ) -> None:
        self.lr, self.weight_decay, self.schedule = lr, weight_decay, schedule
        self.warmup_steps, self.min_lr_ratio = warmup_steps, min_lr_ratio

    @abstractmethod
    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's optimizer, of groups of parameters that have their own `weight_decay`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a group holds beside the rate and the decay, by torch's names."""

    @abstractmethod
    def state_bytes(self, parameter: torch.Tensor) -> int:
        """What the optimizer keeps of a parameter."""

    def build(self, model: nn.Module, max_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer, and a schedule that steps once an optimizer step."""
        decayed, free = decay_groups(model)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay, "decays": True},
            {"params": free, "weight_decay": 0.0, "decays": False},
        ]
        optimizer = self.make([group for group in groups if group["params"]])
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, max_steps))

    def update_saved(
        self, optimizer: dict[str, Any], schedule: dict[str, Any], max_steps: int
    ) -> None:
        """Puts these settings into the saved state of a run that goes on, in place.

        Without it torch would restore the old ones, whatever the configuration says.
        """
        lr = self.lr * self.factor(schedule["last_epoch"], max_steps)
        for group in optimizer["param_groups"]:
            group.update(lr=lr, initial_lr=self.lr, **self.settings())
            group["weight_decay"] = self.weight_decay if group["decays"] else 0.0
        schedule["base_lrs"] = [self.lr] * len(optimizer["param_groups"])

    def factor(self, step: int, max_steps: int) -> float:
        """The rate of the step after `step` steps, as a share of `lr`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        rest = max(1, max_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / rest)
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, and everything else (embeddings, norms, biases); tied weights count once."""
    embeddings = {
        id(parameter)
        for module in _embeddings(model.modules())
        for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else free).append(parameter)
    return decayed, free


def _embeddings(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    return (module for module in modules if isinstance(module, nn.Embedding))
