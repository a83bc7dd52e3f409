"""What the schedules share: the linear warm-up that they begin with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class WarmupSchedule(ABC):
    """A schedule that rises linearly for `warmup_steps` steps.

    Each schedule has this argument as a field of its own, since fields are read from an option's
    source.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate of the step after `step` steps, as a share of the base learning rate.

        Args:
            step: number of optimizer steps before it.
            max_steps: of the run.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.after_warmup(step, max_steps)

    @abstractmethod
    def after_warmup(self, step: int, max_steps: int) -> float:
        """The share in a step that does not belong to the warm-up."""


def progress(step: int, start: int, end: int) -> float:
    """How much of the steps from `start` to `end` lies before `step`: 0 to 1."""
    return min(1.0, max(0, step - start) / max(1, end - start))


def cosine(share: float) -> float:
    """Half a cosine wave: 1 at 0, 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))
