"""A constant learning rate after the warm-up."""

from __future__ import annotations

from xftrain.config.fields import NonNegativeInt
from xftrain.schedule._shapes import WarmupSchedule


class Constant(WarmupSchedule):
    """Stays at the base learning rate after the warm-up.

    Args:
        warmup_steps: steps of linear growth from 0.
    """

    def __init__(self, *, warmup_steps: NonNegativeInt = 10) -> None:
        super().__init__(warmup_steps)

    def after_warmup(self, step: int, max_steps: int) -> float:
        """Returns 1, the base learning rate."""
        return 1.0
