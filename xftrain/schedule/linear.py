"""A linear decay after the warm-up, to zero by default (Bergsma et al., 2025, arXiv:2502.15938)."""

from __future__ import annotations

from xftrain.config.fields import Fraction, NonNegativeInt
from xftrain.schedule._shapes import WarmupSchedule, progress


class Linear(WarmupSchedule):
    """Falls along a line from the end of the warm-up to the last step.

    Args:
        warmup_steps: steps of linear growth from 0.
        min_lr_ratio: share of the base learning rate at the end of the decay.
    """

    def __init__(self, *, warmup_steps: NonNegativeInt = 10, min_lr_ratio: Fraction = 0.0) -> None:
        super().__init__(warmup_steps)
        self.min_lr_ratio = min_lr_ratio

    def after_warmup(self, step: int, max_steps: int) -> float:
        """Falls from 1 to `min_lr_ratio`, then stays there."""
        falling = 1.0 - progress(step, self.warmup_steps, max_steps)
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * falling
