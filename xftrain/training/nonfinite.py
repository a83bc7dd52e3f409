"""Keeps NaN and inf out of the weights, without a wait for the device in any step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from xftrain.errors import RunError
from xftrain.fields import NonNegativeInt
from xftrain.training import distributed
from xftrain.training.fetched import Fetched

if TYPE_CHECKING:
    from xftrain.training.module import TrainingModule

log = logging.getLogger(__name__)

_MAX_STEPS = 1024  # between two questions
_NOT_AGAIN = "it did not come again when the step's batches were repeated"
_MIN_SCALE = 2.0**-8  # GradScaler's own start is 2^16
_NAMED = 3  # parameters in a message


class _Question(NamedTuple):
    """Which of these steps were left out?"""

    steps: list[int]
    fetched: Fetched  # a flag for each, and GradScaler's scale, 1 where there is none


class NonFiniteGuard:
    """Leaves out the optimizer steps whose loss or gradient is not finite, and says so.

    The device itself decides and skips: torch's fused optimizers take a flag, `found_inf`, that
    is there for GradScaler. The host asks at the steps whose metrics are recorded, and is answered
    while the next one is under way; before each checkpoint it waits. From the first such step on,
    `stop` makes no other, so the weights that a checkpoint or a message sees are those before it.
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
        self._flags: Tensor | None = None  # 1 for each step since the last question that is bad
        self._is_bad: Tensor | None = None  # the step that was judged last
        self._any: Tensor | None = None  # whether there was one at all
        self._steps: list[int] = []  # since the last question
        self._asked: _Question | None = None

    def judge(
        self,
        optimizer: torch.optim.Optimizer,
        loss: Tensor,
        norm: Tensor | None,
    ) -> None:
        """Looks at the step that is about to be made, with a few small kernels.

        It can be recorded in a CUDA graph, whose replays judge anew.

        Args:
            optimizer: with the gradients in place.
            loss: of the step's batches.
            norm: of the gradients, which all ranks share; None where GradScaler
                steps the optimizer, which looks at them, and has not done so yet.
        """
        # the same on all ranks, which are to decide alike
        seen = distributed.sum_over_ranks(loss) + (0.0 if norm is None else norm)
        seen = seen.detach()
        if self._is_bad is None or self._any is None:
            self._is_bad, self._any = torch.zeros(2, device=seen.device).unbind()
        torch.ne(seen - seen, 0, out=self._is_bad)  # of NaN and inf, what is left is NaN
        torch.maximum(self._any, self._is_bad, out=self._any)
        left_out = self._any if self.stops else self._is_bad
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not takes_flag(optimizer):  # one of the user's own: the host has to wait
            if left_out:
                for parameter in parameters:
                    parameter.grad = None
        elif norm is not None:
            optimizer.found_inf = left_out  # type: ignore[attr-defined]
        else:  # GradScaler sets the flag itself, and is to find what makes it skip
            grad = next(p.grad for p in reversed(parameters) if p.grad is not None)
            first = grad[(slice(0, 1),) * grad.ndim]  # one number, however it is stored
            first.add_(torch.where(left_out > 0, torch.nan, 0.0))

    @property
    def is_bad(self) -> Tensor:
        """1 where the step that was judged last is not finite; on the device."""
        assert self._is_bad is not None
        return self._is_bad

    def note(self, step: int) -> None:
        """Keeps what was judged, for the next question.

        Args:
            step: its number, from 1.
        """
        if self._flags is None:
            self._flags = torch.zeros(_MAX_STEPS, device=self.is_bad.device)
        self._flags[len(self._steps) % _MAX_STEPS].copy_(self.is_bad)
        self._steps.append(step)

    def is_full(self) -> bool:
        """Whether the next step needs a question before it, for the place to note it."""
        return len(self._steps) >= _MAX_STEPS

    def ask(self, module: TrainingModule) -> None:
        """Has the device answer which of the noted steps were left out; does not wait for it.

        `answer` is to follow before the next question.
        """
        assert self._asked is None
        if self._flags is None or not self._steps:
            return
        flags = distributed.largest_over_ranks(self._flags[: len(self._steps)])
        scale = torch.ones(1, device=flags.device)
        if module.scaler is not None:
            scale = module.scaler.scale(scale)
        self._asked = _Question(self._steps, Fetched(torch.cat([flags, scale])))
        self._steps = []

    def check(self, module: TrainingModule) -> None:
        """Asks and is answered at once, for which it waits for the device.

        Raises:
            RunError: as `answer`.
        """
        self.answer(module)
        self.ask(module)
        self.answer(module)

    def answer(self, module: TrainingModule, *, until: int | None = None) -> None:
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
        bad = [step for step, flag in zip(steps, flags, strict=True) if flag]
        if not bad:
            _refuse_lost_scale(module, steps[-1], scale)
            return
        self.num_skipped += len(bad)
        if self.num_skipped <= self.budget:
            log.warning(
                "left out, since loss or gradient are not finite: step %s (%d of at most %d)",
                ", ".join(map(str, bad)),
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
            f"optim.warmup_steps, or train in another trainer.precision; {remedy}."
        )


def _refuse_lost_scale(module: TrainingModule, step: int, scale: float) -> None:
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


def _found(module: TrainingModule, step: int) -> str:
    """`origin`, of the first rank that has it: batches differ from rank to rank."""
    try:
        found = origin(module, step)
    except Exception as error:  # as where memory runs out
        found = f"where it began could not be looked for, {type(error).__name__}"
    all_found = distributed.from_all_ranks(found)
    return next((one for one in all_found if one != _NOT_AGAIN), found)


def origin(module: TrainingModule, step: int) -> str:
    """Where NaN or inf comes from first, found by making the step's batches once more.

    Args:
        module: with the weights that the step began with, or others not far from them.
        step: its number, from 1.
    """
    parameters = dict(module.model.named_parameters())
    if named := _named(parameters):
        return f"weights that are not finite: {named}"
    accumulate = int(module.trainer.accumulate_grad_batches)
    for index in range((step - 1) * accumulate, step * accumulate):
        with module.plain_weights():
            found = _origin_in_batch(module, parameters, index)
        if found is not None:
            return found
    return _NOT_AGAIN


def _origin_in_batch(
    module: TrainingModule, parameters: Mapping[str, Tensor], index: int
) -> str | None:
    batch = module.stream.batch(index + module.data_offset).to(module.device)
    module.on_train_batch_start(batch, index)  # the same dropout
    with module.model.uncompiled(), _watched(module.model) as bad:  # for the hooks to be called
        with module.trainer.precision_plugin.forward_context():
            sums = module.forward_loss(batch, with_accuracy=False)
            loss = sums.loss / sums.num_labels
    if bad:
        return f"first in {bad[0]}"
    if not torch.isfinite(loss):
        return "first in the loss"
    # the gradients that the parameters hold, and DDP's hooks on them, are left alone
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    if named := _named(dict(zip(parameters, grads, strict=True))):
        return f"the loss is finite; first in the gradient of {named}"
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """What is not finite while the model computes, in that order."""
    bad: list[str] = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not _is_finite(args):  # attention is no module: it is seen where it arrives
                bad.append(f"what reaches {name}")
            elif not _is_finite(output):
                bad.append(f"the output of {name}")

        return hook

    handles = [
        child.register_forward_hook(hook_of(name)) for name, child in model.named_modules() if name
    ]
    try:
        yield bad
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(values: Any) -> bool:
    tensors = values if isinstance(values, tuple) else (values,)
    floats = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in floats)


def _named(tensors: Mapping[str, Tensor | None]) -> str:
    """Those that are not finite; a few of them by name."""
    names = [
        name
        for name, tensor in tensors.items()
        if tensor is not None and not torch.isfinite(tensor).all()
    ]
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
