"""The linear warm-up with which all schedules begin, and the shapes of their decay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class WarmupSchedule(ABC):
    """A schedule that rises linearly for `warmup_steps` steps.

    Each schedule declares this argument too, since an option's fields are read from its own source.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate after `step` steps, as a fraction of the base learning rate.

        Args:
            step: number of completed optimizer steps.
            max_steps: number of optimizer steps of the run.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.after_warmup(step, max_steps)

    @abstractmethod
    def after_warmup(self, step: int, max_steps: int) -> float:
        """The factor of a step after the warm-up."""


def progress(step: int, start: int, end: int) -> float:
    """The fraction of the interval from `start` to `end` that is before `step`, from 0 to 1."""
    return min(1.0, max(0, step - start) / max(1, end - start))


def cosine(fraction: float) -> float:
    """Half a cosine wave, which falls from 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * fraction))
