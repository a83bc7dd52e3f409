"""Lightning's loop over the batches, for steps that are replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from xftrain.errors import ConfigError
from xftrain.train.module import TrainingModule
from xftrain.train.step_graphs import StepGraphs

# hooks within a step, which a replayed graph cannot call
_HOOKS_WITHIN_STEP = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


class GraphedLoop(_TrainingEpochLoop):
    """Runs each step as one graph replay, and calls the hooks around it.

    For a small model, a step on the GPU takes less time than Lightning's hooks, closure and plugins
    take in Python. The loop uses Lightning's counters, so checkpoints do not differ.

    Args:
        trainer: trainer of a run on one CUDA device, with one batch per step.
        module: the module to train.
    """

    def __init__(self, trainer: Trainer, module: TrainingModule) -> None:
        super().__init__(trainer, max_steps=trainer.max_steps)
        self.module, self.steps = module, StepGraphs(module)
        self._hooks: dict[str, list[Callable[..., Any]]] = {}

    def on_run_start(self, data_fetcher: Any) -> None:
        """Checks the callbacks and the optimizer.

        Raises:
            ConfigError: a callback has a hook that would not be called, or the optimizer cannot be
                captured.
        """
        super().on_run_start(data_fetcher)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        for name in _HOOKS_WITHIN_STEP:
            if affected := [callback for callback in callbacks if _has_hook(callback, name)]:
                raise ConfigError(
                    "compile=cudagraphs replays a whole step as one graph, and "
                    f"{type(affected[0]).__name__}.{name} would not be called: use compile=true."
                )
        self.steps.check()
        self._hooks = {
            name: [getattr(callback, name) for callback in callbacks if _has_hook(callback, name)]
            for name in ("on_train_batch_start", "on_train_batch_end")
        }

    def advance(self, data_fetcher: Any) -> None:
        """Runs one batch, which is one optimizer step.

        Raises:
            ConfigError: a callback has set several batches per step.
        """
        module, trainer = self.module, self.trainer
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                "compile=cudagraphs runs an optimizer step for each batch, and a callback has set "
                f"accumulate_grad_batches to {trainer.accumulate_grad_batches}: use compile=true."
            )
        if self.restarting or not self.steps.can_capture:
            with self.steps.eager_step():
                super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        self.batch_progress.is_last_batch = data_fetcher.done
        module.count_label_bytes(batch)
        batch = self.steps.load_batch(batch)
        self.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        batch_idx = self.batch_idx
        self._call("on_train_batch_start", batch, batch_idx)
        module.on_train_batch_start(batch, batch_idx)
        self.batch_progress.increment_started()
        optimizer = self.automatic_optimization.optim_progress.optimizer
        optimizer.zero_grad.increment_ready()
        optimizer.zero_grad.increment_started()
        optimizer.step.increment_ready()
        # profilers recognize a training step by the suffix of this name
        with trainer.profiler.profile("graphed.training_step"):  # type: ignore[attr-defined]
            loss, sums, grad_norm = self.steps.replay()
            module.finish_step(sums, grad_norm)
        optimizer.zero_grad.increment_completed()
        optimizer.step.increment_completed()
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        self._call("on_train_batch_end", {"loss": loss}, batch, batch_idx)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()

    def _call(self, name: str, *arguments: Any) -> None:
        """Calls the hooks of a name, within which `log` works as in Lightning's own loop."""
        self.module._current_fx_name = name
        for hook in self._hooks[name]:
            hook(self.trainer, self.module, *arguments)
        self.module._current_fx_name = None


def _has_hook(callback: Callback, name: str) -> bool:
    """Whether a callback implements a hook, in its class or, like LambdaCallback, in the object."""
    return getattr(getattr(callback, name), "__func__", None) is not getattr(Callback, name)
