"""The interfaces of losses, learning rate schedules and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xftrain.errors import ConfigError


class LossSums(NamedTuple):
    """Sums over the labels of a batch; sums of batches of any sizes can be added exactly.

    A `Loss` returns the first three, and `regularization` if it has such terms.

    Attributes:
        loss: summed cross-entropy in nats.
        num_labels: number of labels in the sum.
        num_correct: number of correctly predicted labels; None if not requested.
        aux: auxiliary loss of the feed-forwards, times the number of labels; None if they have
            none.
        regularization: summed terms that the loss adds to the cross-entropy, such as z-loss; None
            if it adds none. Only the gradient of `minimized` is defined: that of `loss` may include
            the gradient of these terms.
    """

    loss: Tensor
    num_labels: Tensor
    num_correct: Tensor | None
    aux: Tensor | None = None
    regularization: Tensor | None = None

    @property
    def minimized(self) -> Tensor:
        """The sum that training minimizes: cross-entropy, auxiliary loss and regularization."""
        total = self.loss if self.aux is None else self.loss + self.aux
        return total if self.regularization is None else total + self.regularization

    def with_aux(self, aux: Tensor | None) -> LossSums:
        """The same sums with an auxiliary loss, given as a mean over the tokens of the batch."""
        return self if aux is None else self._replace(aux=aux * self.num_labels)

    def detached(self) -> LossSums:
        """The same sums, detached from the autograd graph."""
        return LossSums(*(None if one is None else one.detach() for one in self))  # type: ignore[arg-type]

    def stacked(self) -> Tensor:
        """The first three sums as float64 [3]; `num_correct` must not be None."""
        if self.num_correct is None:
            raise ConfigError(
                "a loss that is called with with_accuracy=True must return the number of correct "
                "predictions, got num_correct=None."
            )
        return torch.stack([x.double() for x in (self.loss, self.num_labels, self.num_correct)])


class Loss(Protocol):
    """Cross-entropy of the next token, from hidden states (`conf/loss/`).

    Optional attributes, which all losses of the package have:

    - `peak_bytes(num_tokens, weight_VD, dtype, device) -> int`: peak memory beside its inputs, in
      bytes, including gradients that the forward pass computes; `dtype` is that of the matmuls. The
      default assumes that the loss holds all logits.
    - `takes_softcap: bool`: whether `__call__` and `peak_bytes` have a keyword argument `softcap`,
      which they get if `model.logit_softcap` is set: the loss is that of `softcap * tanh(logits /
      softcap)`. The default is false, and such a model is refused.
    - `choice(num_tokens, vocab_size, device) -> Loss`: the loss that computes a batch of this size,
      for a loss that only chooses another one.
    - `smaller_option: str | None`: the option of this group that needs less memory.
    - `no_cuda_graph: str | None`: why it cannot be captured in a CUDA graph, and what to use.
    """

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons why this cannot run on the device; empty means that it runs."""
        ...

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Computes the sums over the tokens, of N, whose label is not `IGNORED_LABEL`.

        Args:
            x_ND: normalized hidden states of the last layer.
            weight_VD: the output matrix.
            labels_N: int64 labels.
            with_accuracy: whether to count correct predictions, which reads the logits once more.
        """
        ...


def loss_sums(
    loss: Loss,
    x_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    softcap: float | None,
    *,
    with_accuracy: bool,
) -> LossSums:
    """Calls a loss, which gets the soft cap of the logits only if there is one."""
    capped = {} if softcap is None else {"softcap": softcap}
    call: Callable[..., LossSums] = loss
    return call(x_ND, weight_VD, labels_N, with_accuracy=with_accuracy, **capped)


class Schedule(Protocol):
    """A learning rate schedule, as a pure function of the step (`conf/schedule/`).

    It has no state: a checkpoint holds only the number of steps.
    """

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate after `step` steps, as a fraction of the base learning rate.

        Args:
            step: number of completed optimizer steps, from 0.
            max_steps: number of optimizer steps of the run.

        Returns:
            A finite number >= 0.
        """
        ...


class Optimizer(Protocol):
    """Builds the optimizer, with the schedule applied to it (`conf/optim/`).

    Optional attributes, which all optimizers of the package have:

    - `state_bytes(parameter) -> int`: size of the optimizer state of a parameter. The default is
      that of AdamW.
    - `option_by_parameter(model) -> dict`: the option that steps each parameter, if several
      optimizers share the parameters; its `state_bytes` is used.
    - `takes_bf16_gradients(device) -> bool`: whether its step takes bfloat16 gradients of float32
      weights.
    - `modifies_weights: bool`: whether it changes weights outside its step, or reads gradients
      before they are complete; the default is true.
    - `no_cuda_graph: str | None`: why its step cannot be captured in a CUDA graph, and what to use.
    """

    def build(
        self, model: nn.Module, schedule: Schedule, max_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimizer, and a learning rate scheduler that is stepped once per optimizer step.

        Args:
            model: the model to train.
            schedule: the schedule of each group's learning rate.
            max_steps: number of optimizer steps of the run, passed to the schedule.

        Returns:
            The optimizer and the scheduler. The learning rate of the first parameter group is
            logged as `optim/lr`, and that of each group with a `name` as `optim/lr/<name>`.
        """
        ...

    def update_saved(
        self,
        saved_optimizer: dict[str, Any],
        saved_lr_scheduler: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Replaces the settings in a saved optimizer state by those of this run, group by group.

        Otherwise torch would restore the settings of the checkpoint and ignore the configuration.

        Args:
            saved_optimizer: saved `state_dict` of the optimizer, changed in place.
            saved_lr_scheduler: saved `state_dict` of its scheduler, changed in place.
            optimizer: the optimizer that `build` returned in this run, with as many groups.
            lr_scheduler: the scheduler that `build` returned in this run.
        """
        ...
