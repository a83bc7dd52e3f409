"""The loss of a run against steps, tokens and seconds, and where it reaches a given loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from xftrain.utils.timing import synchronize

START_UP_STEPS = 10  # they contain compilation and the tuning of kernels


class Point(NamedTuple):
    """A point of a curve.

    Attributes:
        step: number of optimizer steps.
        tokens: tokens trained on.
        seconds: time of these steps, without compilation and validation.
        loss: validation loss in nats per token.
    """

    step: int
    tokens: int
    seconds: float
    loss: float


class CurveClock:
    """Times the steps of a run between its validations.

    The first steps contain compilation. They are counted as if each had taken the mean time of the
    others before the first validation; what they took beyond that is `start_up_s`.

    Args:
        device: the device, which is synchronized only when the clock is read.
        tokens_per_step: tokens of one optimizer step.
    """

    def __init__(self, device: torch.device, tokens_per_step: int) -> None:
        self._device, self._tokens_per_step = device, tokens_per_step
        self.points: list[Point] = []
        self.start_up_s = 0.0
        self._step = 0
        self._trained_s = self._early_s = 0.0
        self._early_steps = 0
        self._since = time.perf_counter()

    def after_step(self, step: int) -> None:
        """Counts a step; at the end of the first ones, the clock is read."""
        self._step = step
        if step == START_UP_STEPS:
            self._early_s, self._early_steps = self._read(), step

    def pause(self) -> None:
        """Stops the clock before a validation."""
        self._trained_s += self._read()

    def resume(self, loss: float) -> None:
        """Adds a point with the loss of the validation that has ended, and goes on timing."""
        if not self.points and 0 < self._early_steps < self._step:
            per_step = (self._trained_s - self._early_s) / (self._step - self._early_steps)
            self.start_up_s = max(0.0, self._early_s - per_step * self._early_steps)
        seconds = self._trained_s - self.start_up_s
        self.points.append(Point(self._step, self._step * self._tokens_per_step, seconds, loss))
        self._since = time.perf_counter()

    def _read(self) -> float:
        synchronize(self._device)
        return time.perf_counter() - self._since


def reaches(points: Sequence[Point], loss: float) -> Point | None:
    """Where a curve first reaches a loss, interpolated between two points; None if it does not."""
    previous = None
    for point in points:
        if point.loss <= loss:
            if previous is None or previous.loss <= point.loss:
                return point
            share = (previous.loss - loss) / (previous.loss - point.loss)
            between = [a + share * (b - a) for a, b in zip(previous[:3], point[:3], strict=True)]
            return Point(round(between[0]), round(between[1]), between[2], loss)
        previous = point
    return None
