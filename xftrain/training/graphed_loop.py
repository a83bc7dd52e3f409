"""Lightning's loop over the batches, for steps that are replayed as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from xftrain.errors import ConfigError
from xftrain.training.module import TrainingModule
from xftrain.training.step_graphs import StepGraphs

# of which a replayed step calls none: it is one piece
_WITHIN = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
Hook = Callable[..., Any]


class GraphedLoop(_TrainingEpochLoop):
    """Makes each step in one piece, and calls the hooks around it that there are.

    A small model's step takes the GPU less time than Lightning's own way through the hooks, the
    closure and the plugins takes Python. The counters are Lightning's, so checkpoints are too.

    Args:
        trainer: of one CUDA device, with one batch a step.
        module: what it trains.
    """

    def __init__(self, trainer: Trainer, module: TrainingModule) -> None:
        super().__init__(trainer, max_steps=trainer.max_steps)
        self.module, self.steps = module, StepGraphs(module)
        self._start_hooks: list[Hook] = []
        self._end_hooks: list[Hook] = []

    def on_run_start(self, data_fetcher: Any) -> None:
        """Looks at the callbacks and the optimizer that there are.

        Raises:
            ConfigError: a hook that would not be called, an optimizer that cannot be recorded.
        """
        super().on_run_start(data_fetcher)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        for name in _WITHIN:
            if has := [c for c in callbacks if _overrides(c, name)]:
                raise ConfigError(
                    f"compile=cudagraphs makes a step in one piece, and {type(has[0]).__name__}."
                    f"{name} would not be called: use compile=true."
                )
        self.steps.check()
        self._start_hooks, self._end_hooks = (
            [getattr(c, name) for c in callbacks if _overrides(c, name)]
            for name in ("on_train_batch_start", "on_train_batch_end")
        )

    def advance(self, data_fetcher: Any) -> None:
        """One batch, which is one optimizer step."""
        module, trainer = self.module, self.trainer
        with_accuracy = module.logs_this_step()
        if self.restarting or not self.steps.can_make(with_accuracy=with_accuracy):
            with self.steps.without(with_accuracy=with_accuracy):
                super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        self.batch_progress.is_last_batch = data_fetcher.done
        self.batch_progress.increment_ready()
        batch_idx = self.batch_idx
        for hook in self._start_hooks:
            hook(trainer, module, batch, batch_idx)
        module.on_train_batch_start(batch, batch_idx)
        self.batch_progress.increment_started()
        optimizer = self.automatic_optimization.optim_progress.optimizer
        optimizer.zero_grad.increment_ready()
        optimizer.step.increment_ready()
        optimizer.zero_grad.increment_started()
        with trainer.profiler.profile("run_training_batch"):  # type: ignore[attr-defined]
            module.take(*self.steps.make(batch, with_accuracy=with_accuracy))
        optimizer.zero_grad.increment_completed()
        optimizer.step.increment_completed()
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        for hook in self._end_hooks:
            hook(trainer, module, None, batch, batch_idx)
        self.batch_progress.increment_completed()


def _overrides(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name) is not getattr(Callback, name)
