"""Keeps NaN and inf out of the weights, without waiting for the device in each step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from xftrain.config.fields import NonNegativeInt
from xftrain.errors import RunError
from xftrain.interfaces import LossSums
from xftrain.train import distributed
from xftrain.train.host_copies import AsyncHostCopy
from xftrain.train.nonfinite_origin import NOT_REPRODUCED, origin
from xftrain.train.trained_module import TrainedModule

log = logging.getLogger(__name__)

_MAX_STEPS = 1024  # maximum number of steps between two readbacks
_MIN_SCALE = 2.0**-8  # GradScaler starts at 2^16
_MAX_NAMED = 5  # maximum number of steps named in a message


class _PendingReadback(NamedTuple):
    """A pending readback of the flags that tell which steps were skipped."""

    steps: list[int]
    flags_copy: AsyncHostCopy  # two flags of each step, then GradScaler's scale, or 1 without it


class NonFiniteGuard:
    """Skips optimizer steps whose loss or gradient is not finite, and reports them.

    The device itself decides and skips, by the flag `found_inf` that torch's fused optimizers have
    for GradScaler. The host starts a readback of the flags at recorded steps, and reads the result
    during the next step; before each checkpoint it waits. With `stop`, all steps after the first
    non-finite one are skipped too, so a checkpoint or a message sees the weights before that step.
    A step without any label has no loss, but its gradient of 0 would still decay the weights and
    apply their moments. So it is skipped and reported with any `on_nonfinite`, but not counted.
    In fp16, GradScaler handles infinite gradients, which are not counted until its scale is lower
    than any finite gradient needs; infinite losses are counted.

    Args:
        on_nonfinite: `stop` ends the run; `skip` skips the step and continues.
        max_skipped_steps: with `skip`, number of steps that may be skipped before the run ends.
    """

    def __init__(
        self,
        *,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped_steps: NonNegativeInt = 10,
    ) -> None:
        self.stops = on_nonfinite == "stop"
        self.budget = 0 if self.stops else max_skipped_steps
        self.num_skipped = 0  # skipped steps, as of the last readback
        self._flags: Tensor | None = None  # of each step since the last readback: bad, empty
        self._is_bad: Tensor | None = None  # whether the last checked step is bad
        self._is_empty: Tensor | None = None  # whether the last checked step has no label
        self._any_bad: Tensor | None = None  # whether any step was bad
        self._must_skip: Tensor | None = None  # whether the optimizer must skip the step
        self._hooked: torch.optim.Optimizer | None = None
        self._num_empty = self._num_read_back = 0  # numbers of steps in this process
        self._steps: list[int] = []  # since the last readback
        self._pending: _PendingReadback | None = None

    def check_step(
        self,
        optimizer: torch.optim.Optimizer,
        sums: LossSums,
        norm: Tensor | None,
    ) -> None:
        """Checks the gradients and the loss of the next optimizer step, by a few small kernels.

        It can be captured in a CUDA graph, whose replays check again.

        Args:
            optimizer: the optimizer, whose parameters have their gradients.
            sums: loss sums of the step, over all micro-batches and ranks, so that ranks agree.
            norm: norm of the gradients, equal on all ranks; None if GradScaler checks the
                gradients later.
        """
        checked = sums.minimized.detach() + (0.0 if norm is None else norm)
        if self._is_bad is None:
            zeros = torch.zeros(4, device=checked.device).unbind()
            self._is_bad, self._is_empty, self._any_bad, self._must_skip = zeros
        assert (
            self._is_empty is not None and self._any_bad is not None and self._must_skip is not None
        )
        torch.ne(checked - checked, 0, out=self._is_bad)  # inf - inf and NaN - NaN are NaN
        torch.eq(sums.num_labels, 0, out=self._is_empty)
        torch.maximum(self._any_bad, self._is_bad, out=self._any_bad)
        is_bad = self._any_bad if self.stops else self._is_bad
        torch.maximum(is_bad, self._is_empty, out=self._must_skip)
        if not skips_if_found_inf(optimizer):  # a user's optimizer: the host has to wait
            if self._must_skip:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
        elif norm is not None:
            optimizer.found_inf = self._must_skip  # type: ignore[attr-defined]
        elif optimizer is not self._hooked:  # GradScaler sets the flag just before the step
            optimizer.register_step_pre_hook(self._add_to_found_inf)
            self._hooked = optimizer

    def _add_to_found_inf(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Adds the guard's decision to `found_inf`, without a change of GradScaler's scale."""
        assert self._must_skip is not None
        found_inf = torch.maximum(optimizer.found_inf, self._must_skip)  # type: ignore[attr-defined]
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]

    @property
    def is_bad(self) -> Tensor:
        """A device tensor: 1 if the last checked step is not finite, else 0."""
        assert self._is_bad is not None
        return self._is_bad

    @property
    def must_skip(self) -> Tensor:
        """A device tensor: 1 if this guard has the optimizer skip the last checked step, else 0."""
        assert self._must_skip is not None
        return self._must_skip

    def record(self, step: int) -> None:
        """Records the flags of the last checked step for the next readback.

        Args:
            step: number of the step, from 1.
        """
        if self._flags is None:
            self._flags = torch.zeros(_MAX_STEPS, 2, device=self.is_bad.device)
        assert self._is_empty is not None
        flags = self._flags[len(self._steps) % _MAX_STEPS]
        torch.stack([self.is_bad, self._is_empty], out=flags)
        self._steps.append(step)

    def is_full(self) -> bool:
        """Whether the flags are full, so that a readback must precede the next step."""
        return len(self._steps) >= _MAX_STEPS

    def start_readback(self, module: TrainedModule) -> None:
        """Starts a readback of which recorded steps were skipped, without waiting for it.

        `finish_readback` must be called before the next readback.
        """
        assert self._pending is None
        if self._flags is None or not self._steps:
            return
        flags = distributed.all_reduce_max(self._flags[: len(self._steps)])
        scale = torch.ones(1, device=flags.device)
        if module.scaler is not None:
            scale = module.scaler.scale(scale)
        self._pending = _PendingReadback(
            self._steps, AsyncHostCopy(torch.cat([flags.flatten(), scale]))
        )
        self._steps = []

    def check(self, module: TrainedModule) -> None:
        """Reads the flags back at once, and waits for the device.

        Raises:
            RunError: see `finish_readback`.
        """
        self.finish_readback(module)
        self.start_readback(module)
        self.finish_readback(module)

    def end(self, module: TrainedModule) -> None:
        """Checks the last steps of a run.

        Raises:
            RunError: see `finish_readback`; also if no step has a label.
        """
        self.check(module)
        if self._num_read_back and self._num_empty == self._num_read_back:
            raise RunError(
                f"nothing was trained: none of the {self._num_empty} steps has a label that counts "
                "(all are IGNORED_LABEL, -100); give data with labels in its training batches."
            )

    def finish_readback(self, module: TrainedModule, *, until: int | None = None) -> None:
        """Finishes a pending readback, and ends the run if too many steps were skipped.

        Args:
            module: the module of the run.
            until: a step; a readback of a later step stays pending.

        Raises:
            RunError: a step was not finite; the message names the step, the origin and a remedy.
        """
        if self._pending is None or (until is not None and self._pending.steps[-1] > until):
            return
        (steps, flags_copy), self._pending = self._pending, None
        *flags, scale = flags_copy.wait().tolist()
        bad = [step for step, is_bad in zip(steps, flags[::2], strict=True) if is_bad]
        empty = [step for step, is_empty in zip(steps, flags[1::2], strict=True) if is_empty]
        self._num_read_back += len(steps)
        self._num_empty += len(empty)
        if empty:
            log.warning(
                "skipped, since no label of their batches counts (all are IGNORED_LABEL, -100): "
                "step %s",
                _listed(empty),
            )
        if not bad:
            _refuse_lost_scale(module, steps[-1], scale)
            return
        self.num_skipped += len(bad)
        if self.num_skipped <= self.budget:
            log.warning(
                "skipped, since the loss or the gradient is not finite: step %s (%d of at most %d)",
                _listed(bad),
                self.num_skipped,
                self.budget,
            )
            return
        step = bad[0] if self.stops else bad[-1]
        if self.stops:
            remedy = "on_nonfinite=skip skips such steps"
        else:
            remedy = f"max_skipped_steps={self.budget} is used up"
        raise RunError(
            f"the loss or the gradient of step {step} is not finite "
            f"({_origin_over_ranks(module, step)}); the step was skipped, and the checkpoints are "
            "of steps before it: lower optim.lr, raise schedule.warmup_steps, or train in another "
            f"trainer.precision; {remedy}."
        )


def _refuse_lost_scale(module: TrainedModule, step: int, scale: float) -> None:
    """Ends a run in which all gradients are NaN, since GradScaler would skip every step.

    Raises:
        RunError: the scale is lower than any finite gradient needs.
    """
    if scale >= _MIN_SCALE:
        return
    raise RunError(
        f"the gradients are not finite at any scale: by step {step} GradScaler had skipped so "
        f"many steps that its scale is {scale:.1g} ({_origin_over_ranks(module, step)}); the "
        "checkpoints are of steps before it: use trainer.precision=bf16-mixed, or lower optim.lr."
    )


def skips_if_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer skips a step if `found_inf` is set, like torch's fused ones."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _origin_over_ranks(module: TrainedModule, step: int) -> str:
    """The origin that the first rank with one reports, since batches differ by rank."""
    try:
        own = origin(module, step)
    except Exception as error:  # for example, out of memory
        own = f"its origin could not be found, {type(error).__name__}"
    origins = distributed.all_gather_values(own)
    return next((text for text in origins if text != NOT_REPRODUCED), own)


def _listed(steps: Sequence[int]) -> str:
    more = len(steps) - _MAX_NAMED
    named = ", ".join(map(str, steps[:_MAX_NAMED]))
    return named + (f" and {more} more" if more > 0 else "")
