"""Warmup, stable, decay (Hu et al., 2024, MiniCPM, arXiv:2404.06395)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from xftrain.config.fields import Fraction, NonNegativeInt
from xftrain.schedule._shapes import WarmupSchedule, cosine, progress

_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": cosine,
    "sqrt": lambda share: 1.0 - math.sqrt(share),
}


class Wsd(WarmupSchedule):
    """Stays constant after the warm-up, and decays only in the last steps.

    A checkpoint of the stable phase does not depend on `max_steps`: it can be resumed with more
    steps, or with fewer to decay now. The paper decays exponentially; here the decay ends at
    `min_lr_ratio` exactly.

    Args:
        warmup_steps: steps of linear growth from 0.
        decay_share: fraction of all steps, at the end, in which the learning rate decays.
        decay: shape of the decay: `linear`, `cosine`, or `sqrt`, which is 1 - sqrt(fraction of
            the decay) (Hägele et al., 2024, arXiv:2405.18392).
        min_lr_ratio: share of the base learning rate at the end of the decay.
    """

    def __init__(
        self,
        *,
        warmup_steps: NonNegativeInt = 10,
        decay_share: Fraction = 0.1,
        decay: Literal["linear", "cosine", "sqrt"] = "linear",
        min_lr_ratio: Fraction = 0.1,
    ) -> None:
        super().__init__(warmup_steps)
        self.decay_share, self.min_lr_ratio = decay_share, min_lr_ratio
        self.decay = _DECAYS[decay]

    def after_warmup(self, step: int, max_steps: int) -> float:
        """Stays at 1, then falls to `min_lr_ratio`, then stays there."""
        start = max(self.warmup_steps, max_steps - round(self.decay_share * max_steps))
        falling = self.decay(progress(step, start, max_steps))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * falling
