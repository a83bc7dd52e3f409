"""Keeps NaN and inf out of the weights, without a wait for the device in any step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from xftrain.errors import RunError
from xftrain.fields import NonNegativeInt
from xftrain.interfaces import LossSums
from xftrain.training import distributed
from xftrain.training.host_copies import AsyncHostCopy
from xftrain.training.nonfinite_origin import NOT_AGAIN, origin
from xftrain.training.trained_module import TrainedModule

log = logging.getLogger(__name__)

_MAX_STEPS = 1024  # between two questions
_MIN_SCALE = 2.0**-8  # GradScaler's own start is 2^16
_NAMED = 5  # steps in a message


class _Question(NamedTuple):
    """Which of these steps were left out?"""

    steps: list[int]
    fetched: AsyncHostCopy  # the flags of each, and GradScaler's scale, 1 where there is none


class NonFiniteGuard:
    """Leaves out the optimizer steps whose loss or gradient is not finite, and says so.

    The device itself decides and skips: torch's fused optimizers take a flag, `found_inf`, that
    is there for GradScaler. The host asks at the steps whose metrics are recorded, and is answered
    while the next one is under way; before each checkpoint it waits. From the first such step on,
    `stop` makes no other, so the weights that a checkpoint or a message sees are those before it.
    A step without any label has no loss, and its gradient of 0 would still decay weights and move
    them by the moments: it is left out and said, whatever `on_nonfinite` is, and is not counted.
    In fp16 an infinite gradient is GradScaler's own affair and not counted, until its scale has
    fallen to what no gradient needs; an infinite loss is.

    Args:
        on_nonfinite: `stop` ends the run; `skip` leaves the step out and goes on.
        max_skipped_steps: with `skip`, steps that may be left out before the run ends.
    """

    def __init__(
        self,
        *,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped_steps: NonNegativeInt = 10,
    ) -> None:
        self.stops = on_nonfinite == "stop"
        self.budget = 0 if self.stops else max_skipped_steps
        self.num_skipped = 0  # steps left out, as of the last answer
        self._flags: Tensor | None = None  # of each step since the last question: bad, empty
        self._is_bad: Tensor | None = None  # the step that was judged last
        self._is_empty: Tensor | None = None  # whether that step has no label
        self._any: Tensor | None = None  # whether a step was bad at all
        self._left_out: Tensor | None = None  # whether the optimizer is to leave the step out
        self._hooked: torch.optim.Optimizer | None = None
        self._num_empty = self._num_answered = 0  # steps, of this process
        self._steps: list[int] = []  # since the last question
        self._asked: _Question | None = None

    def check_step(
        self,
        optimizer: torch.optim.Optimizer,
        sums: LossSums,
        norm: Tensor | None,
    ) -> None:
        """Looks at the step that is about to be made, with a few small kernels.

        It can be recorded in a CUDA graph, whose replays judge anew.

        Args:
            optimizer: with the gradients in place.
            sums: of the step, over all its batches and ranks, as ranks are to decide alike.
            norm: of the gradients, which all ranks share; None where GradScaler
                steps the optimizer, which looks at them, and has not done so yet.
        """
        seen = sums.minimized.detach() + (0.0 if norm is None else norm)
        if self._is_bad is None:
            zeros = torch.zeros(4, device=seen.device).unbind()
            self._is_bad, self._is_empty, self._any, self._left_out = zeros
        assert self._is_empty is not None and self._any is not None and self._left_out is not None
        torch.ne(seen - seen, 0, out=self._is_bad)  # of NaN and inf, what is left is NaN
        torch.eq(sums.num_labels, 0, out=self._is_empty)
        torch.maximum(self._any, self._is_bad, out=self._any)
        is_bad = self._any if self.stops else self._is_bad
        torch.maximum(is_bad, self._is_empty, out=self._left_out)
        if not takes_flag(optimizer):  # one of the user's own: the host has to wait
            if self._left_out:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
        elif norm is not None:
            optimizer.found_inf = self._left_out  # type: ignore[attr-defined]
        elif optimizer is not self._hooked:  # GradScaler sets the flag just before the step
            optimizer.register_step_pre_hook(self._raise_flag)
            self._hooked = optimizer

    def _raise_flag(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Adds to GradScaler's flag, and leaves its scale alone: another one would not help."""
        assert self._left_out is not None
        found_inf = torch.maximum(optimizer.found_inf, self._left_out)  # type: ignore[attr-defined]
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]

    @property
    def is_bad(self) -> Tensor:
        """1 where the step that was judged last is not finite; on the device."""
        assert self._is_bad is not None
        return self._is_bad

    def record(self, step: int) -> None:
        """Keeps what was judged, for the next question.

        Args:
            step: its number, from 1.
        """
        if self._flags is None:
            self._flags = torch.zeros(_MAX_STEPS, 2, device=self.is_bad.device)
        assert self._is_empty is not None
        flags = self._flags[len(self._steps) % _MAX_STEPS]
        torch.stack([self.is_bad, self._is_empty], out=flags)
        self._steps.append(step)

    def is_full(self) -> bool:
        """Whether the next step needs a question before it, for the place to note it."""
        return len(self._steps) >= _MAX_STEPS

    def start_readback(self, module: TrainedModule) -> None:
        """Has the device answer which of the noted steps were left out; does not wait for it.

        `finish_readback` is to follow before the next question.
        """
        assert self._asked is None
        if self._flags is None or not self._steps:
            return
        flags = distributed.largest_over_ranks(self._flags[: len(self._steps)])
        scale = torch.ones(1, device=flags.device)
        if module.scaler is not None:
            scale = module.scaler.scale(scale)
        self._asked = _Question(self._steps, AsyncHostCopy(torch.cat([flags.flatten(), scale])))
        self._steps = []

    def check(self, module: TrainedModule) -> None:
        """Asks and is answered at once, for which it waits for the device.

        Raises:
            RunError: as `finish_readback`.
        """
        self.finish_readback(module)
        self.start_readback(module)
        self.finish_readback(module)

    def end(self, module: TrainedModule) -> None:
        """Looks at the last steps of a run.

        Raises:
            RunError: as `finish_readback`, or no step has a label.
        """
        self.check(module)
        if self._num_answered and self._num_empty == self._num_answered:
            raise RunError(
                f"nothing was trained: none of the {self._num_empty} steps has a label that counts "
                "(all are IGNORED_LABEL, -100); give data with labels in its training batches."
            )

    def finish_readback(self, module: TrainedModule, *, until: int | None = None) -> None:
        """Ends the run where steps were left out that may not be, by the question there is.

        Args:
            module: of the run.
            until: a step; a question that is of a later one stays.

        Raises:
            RunError: which step it was, where NaN or inf came from first, and what to do.
        """
        if self._asked is None or (until is not None and self._asked.steps[-1] > until):
            return
        (steps, fetched), self._asked = self._asked, None
        *flags, scale = fetched.wait().tolist()
        bad = [step for step, is_bad in zip(steps, flags[::2], strict=True) if is_bad]
        empty = [step for step, is_empty in zip(steps, flags[1::2], strict=True) if is_empty]
        self._num_answered += len(steps)
        self._num_empty += len(empty)
        if empty:
            log.warning(
                "left out, since no label of their batches counts (all are IGNORED_LABEL, -100): "
                "step %s",
                _listed(empty),
            )
        if not bad:
            _refuse_lost_scale(module, steps[-1], scale)
            return
        self.num_skipped += len(bad)
        if self.num_skipped <= self.budget:
            log.warning(
                "left out, since loss or gradient are not finite: step %s (%d of at most %d)",
                _listed(bad),
                self.num_skipped,
                self.budget,
            )
            return
        step = bad[0] if self.stops else bad[-1]
        if self.stops:
            remedy = "on_nonfinite=skip leaves such steps out"
        else:
            remedy = f"max_skipped_steps={self.budget} is used up"
        raise RunError(
            f"the loss or the gradient of step {step} is not finite ({_found(module, step)}); the "
            "step was not made and the checkpoints are of steps before it: lower optim.lr, raise "
            f"schedule.warmup_steps, or train in another trainer.precision; {remedy}."
        )


def _refuse_lost_scale(module: TrainedModule, step: int, scale: float) -> None:
    """GradScaler goes on for ever where each gradient is NaN, and every step is left out."""
    if scale >= _MIN_SCALE:
        return
    raise RunError(
        f"the gradients are not finite however they are scaled: by step {step} GradScaler had left "
        f"out so many that its scale is {scale:.1g} ({_found(module, step)}); the "
        "checkpoints are of steps before it: use trainer.precision=bf16-mixed, or lower optim.lr."
    )


def takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it skips a step itself where `found_inf` says so, as torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _found(module: TrainedModule, step: int) -> str:
    """`origin`, of the first rank that has it: batches differ from rank to rank."""
    try:
        found = origin(module, step)
    except Exception as error:  # as where memory runs out
        found = f"where it began could not be looked for, {type(error).__name__}"
    all_found = distributed.from_all_ranks(found)
    return next((one for one in all_found if one != NOT_AGAIN), found)


def _listed(steps: Sequence[int]) -> str:
    more = len(steps) - _NAMED
    named = ", ".join(map(str, steps[:_NAMED]))
    return named + (f" and {more} more" if more > 0 else "")
