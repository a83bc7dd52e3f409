"""Computes the loss of an optimizer step: its sum over all labels, divided by their number."""

from __future__ import annotations

import torch
from torch import Tensor

from xftrain.interfaces import LossSums
from xftrain.train import distributed
from xftrain.train.trained_module import TrainedModule
from xftrain.utils.transfer import on_device


class StepSums:
    """Accumulates the micro-batches of a step, so that the gradient is that of one large batch.

    Micro-batch i of k on rank r of R has the summed cross-entropy s_ir and n_ir labels. The step
    minimizes

        loss = sum of all s_ir / N,  N = sum of all n_ir

    If feed-forwards have an auxiliary loss a_ir, n_ir a_ir is added to s_ir, as are the summed
    terms of a regularized loss.

    Lightning divides what `add` returns by k, and DDP averages gradients over the R ranks. So:

    * k = 1: N is known before the backward pass, which differentiates s_1r / (N / R).
    * k > 1: N is known only after the last forward pass, when earlier micro-batches have had their
      backward pass. Each of these differentiates s_ir / T, where T is a constant, the number of
      tokens of the run's first micro-batch. After the last backward pass `rescale` multiplies the
      gradients by T k R / N on the device: one pass over them per step, and no wait. The factor is
      exactly 1 if every token has a label. In float16, GradScaler's scale is still in the
      gradients; each label has the weight that it has in a batch whose tokens all have labels, so
      there is no overflow that such a batch would not have.

    A step without labels has the loss 0 / 1 and gradients of 0; `NonFiniteGuard` skips it. The sums
    are all-reduced once per step.

    Args:
        module: the module that runs the steps.
    """

    def __init__(self, module: TrainedModule) -> None:
        self.module = module
        self.total: LossSums | None = None  # of the last complete step, over all ranks
        self._accumulated: LossSums | None = (
            None  # of this rank's micro-batches of the current step
        )
        self._factor: Tensor | None = None  # factor of the gradients of the last complete step
        self._full_tokens: int | None = None  # T

    def add(self, sums: LossSums, batch_idx: int) -> Tensor:
        """Adds a micro-batch, and returns the loss for its backward pass.

        Args:
            sums: loss sums of the micro-batch.
            batch_idx: index of the micro-batch in the run, from 0.
        """
        trainer, num_ranks = self.module.trainer, distributed.world_size()
        num_batches = trainer.accumulate_grad_batches
        if batch_idx % num_batches == 0:  # Lightning zeroes the gradients here
            self._accumulated = None
        elif (
            self._accumulated is None
        ):  # a callback changed the accumulation, so Lightning does not
            trainer.optimizers[0].zero_grad()
        own = sums.detached()
        self._accumulated = own if self._accumulated is None else _added(self._accumulated, own)
        self._factor = None
        is_last = (batch_idx + 1) % num_batches == 0
        if is_last:
            self.total, self._accumulated = all_reduce_sums(self._accumulated), None
        if num_batches == 1:
            assert self.total is not None
            return sums.minimized / mean_labels(self.total.num_labels, num_ranks)
        full_tokens = self._tokens_of_first_batch()
        if is_last:
            assert self.total is not None
            num_labels = self.total.num_labels.clamp(min=1).double()
            self._factor = (full_tokens * num_batches * num_ranks / num_labels).float()
        return sums.minimized / full_tokens

    def rescale(self, optimizer: torch.optim.Optimizer) -> None:
        """Scales the gradients to those of the step's loss, after its last backward pass.

        Does nothing after any other backward pass, and in steps of one micro-batch.
        """
        if self._factor is None:
            return
        factor, self._factor = self._factor, None
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        if grads := [p.grad for p in parameters if p.grad is not None]:
            torch._foreach_mul_(grads, factor)

    def _tokens_of_first_batch(self) -> int:
        """Returns T, the maximum over ranks, equal on all ranks and after a resume."""
        if self._full_tokens is None:
            own = on_device([self.module.stream.batch(0).num_tokens], self.module.device)
            self._full_tokens = int(distributed.all_reduce_max(own))
        return self._full_tokens


def mean_labels(num_labels: Tensor, num_ranks: int = 1) -> Tensor:
    """The divisor of a summed loss: the mean number of labels per rank; 1 / R without labels.

    Args:
        num_labels: number of labels of all ranks.
        num_ranks: R.
    """
    at_least_one = num_labels.clamp(min=1)
    return at_least_one if num_ranks == 1 else at_least_one / num_ranks


def all_reduce_sums(sums: LossSums) -> LossSums:
    """All-reduces loss sums, without waiting for the device."""
    if distributed.world_size() == 1:
        return sums
    known = {name: value.double() for name, value in sums._asdict().items() if value is not None}
    totals = distributed.all_reduce_sum(torch.stack(list(known.values()))).unbind()
    total = sums._replace(**dict(zip(known, totals, strict=True)))
    return total._replace(num_labels=total.num_labels.long())


def _added(first: LossSums, second: LossSums) -> LossSums:
    def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a + b

    return LossSums(
        first.loss + second.loss,
        first.num_labels + second.num_labels,
        added(first.num_correct, second.num_correct),
        added(first.aux, second.aux),
        added(first.regularization, second.regularization),
    )
