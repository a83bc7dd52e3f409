"""What trains a model: losses, schedules and optimizers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xftrain.errors import ConfigError


class LossSums(NamedTuple):
    """Sums over the labels of a batch, so that parts add up exactly whatever their sizes.

    A `Loss` returns the first three.

    Attributes:
        loss: summed cross-entropy in nats.
        num_labels: how many labels it was summed over.
        num_correct: how many were guessed right; None where it was not asked for.
        aux: auxiliary loss of the feed-forwards, times the number of labels; None where they have
            none.
    """

    loss: Tensor
    num_labels: Tensor
    num_correct: Tensor | None
    aux: Tensor | None = None

    @property
    def minimized(self) -> Tensor:
        """What training minimizes: the cross-entropy and the auxiliary loss."""
        return self.loss if self.aux is None else self.loss + self.aux

    def with_aux(self, aux: Tensor | None) -> LossSums:
        """The same with an auxiliary loss, a mean over the tokens of the batch."""
        return self if aux is None else self._replace(aux=aux * self.num_labels)

    def detached(self) -> LossSums:
        """The same numbers, without a graph of autograd."""
        aux = None if self.aux is None else self.aux.detach()
        return self._replace(loss=self.loss.detach(), aux=aux)

    def stacked(self) -> Tensor:
        """The first three as float64 [3], where `num_correct` was asked for."""
        if self.num_correct is None:
            raise ConfigError(
                "a loss that is called with with_accuracy=True must return the number of correct "
                "guesses, got num_correct=None."
            )
        return torch.stack([one.double() for one in (self.loss, self.num_labels, self.num_correct)])


class Loss(Protocol):
    """Cross-entropy of the next token, from hidden states (`conf/loss/`).

    A loss may have more, and all of its own package have:

    - `peak_bytes(num_tokens, weight_VD, dtype, device) -> int`: the most memory that it needs at
      once beside its inputs, in bytes, the gradients that its forward pass makes included; `dtype`
      is that of the matmuls. Without it, the loss is taken to hold the whole logits.
    - `choice(num_tokens, vocab_size, device) -> Loss`: the loss that runs such a batch, where this
      one only chooses.
    - `smaller_option: str | None`: the option of this group that needs less memory.
    - `no_cuda_graph: str | None`: why it cannot be recorded in a CUDA graph, and what to use.
    """

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons why this cannot run on the device; empty means that it runs."""
        ...

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the N tokens whose label is not `IGNORED_LABEL`.

        Args:
            x_ND: last hidden states, normalized.
            weight_VD: the output matrix.
            labels_N: int64 labels.
            with_accuracy: also count correct guesses, which reads the logits once more.
        """
        ...


class Schedule(Protocol):
    """Learning rates, as a pure function of the step (`conf/schedule/`).

    It has no state: a checkpoint holds the number of steps alone.
    """

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate of the step after `step` steps, as a share of the base learning rate.

        Args:
            step: number of optimizer steps before it, from 0.
            max_steps: of the run.

        Returns:
            A finite number >= 0.
        """
        ...


class Optimizer(Protocol):
    """Builds the optimizer, with the schedule applied to it (`conf/optim/`).

    An option may have more, and all of the package have:

    - `state_bytes(parameter) -> int`: what the optimizer keeps of a parameter. Without it, the
      state is taken to be as large as AdamW's.
    - `option_by_parameter(model) -> dict`: the option that steps each parameter, whose
      `state_bytes` is asked, where several optimizers share them.
    - `takes_bf16_gradients(device) -> bool`: its step reads bfloat16 gradients of float32 weights.
    - `modifies_weights: bool`: whether anything but its step changes weights or reads gradients
      before they are complete; true where it is not said.
    - `no_cuda_graph: str | None`: why its step cannot be recorded in a CUDA graph, and what to use.
    """

    def build(
        self, model: nn.Module, schedule: Schedule, max_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimizer, and a learning rate scheduler that is stepped once an optimizer step.

        Args:
            model: whose parameters are trained.
            schedule: what the learning rate scheduler applies to each group's base learning rate.
            max_steps: of the run, which the schedule gets.

        Returns:
            The optimizer, whose groups may have a `name`: then their learning rates are logged as
            `optim/lr/<name>`, beside that of the first group, `optim/lr`.
        """
        ...

    def update_saved(
        self,
        saved_optimizer: dict[str, Any],
        saved_lr_scheduler: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Puts today's settings into the saved state of a run that resumes, group by group.

        Without it torch restores the settings of the checkpoint, whatever the configuration says.

        Args:
            saved_optimizer: what `state_dict` of the optimizer returned, changed in place.
            saved_lr_scheduler: what `state_dict` of its scheduler returned, changed in place.
            optimizer: what `build` has returned in this run, with as many groups.
            lr_scheduler: the same.
        """
        ...
