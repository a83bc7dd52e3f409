"""Cosine decay without restarts (Loshchilov, Hutter, 2016, arXiv:1608.03983)."""

from __future__ import annotations

from xftrain.config.fields import Fraction, NonNegativeInt
from xftrain.schedule._shapes import WarmupSchedule, cosine, progress


class Cosine(WarmupSchedule):
    """Falls along half a cosine wave from the end of the warm-up to the last step.

    Args:
        warmup_steps: steps of linear growth from 0.
        min_lr_ratio: share of the base learning rate at the end of the decay.
    """

    def __init__(self, *, warmup_steps: NonNegativeInt = 10, min_lr_ratio: Fraction = 0.1) -> None:
        super().__init__(warmup_steps)
        self.min_lr_ratio = min_lr_ratio

    def after_warmup(self, step: int, max_steps: int) -> float:
        """Falls from 1 to `min_lr_ratio`, then stays there."""
        falling = cosine(progress(step, self.warmup_steps, max_steps))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * falling
