"""xftrain as a user runs it: `xftrain.run` of a configuration, timed by a callback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from peers.setup import Setup, config_overrides
from peers.stopwatch import Stopwatch, device_peak
from xftrain import compose, run
from xftrain.interfaces import Batch
from xftrain.model.flops import flops_per_token
from xftrain.train.module import training_module


class TimingCallback(Callback):
    """Calls the stopwatch that times all peers, at the end of each step.

    Args:
        arguments: arguments of the stopwatch.
    """

    modifies_weights = False  # otherwise the run would have no bfloat16 copies of the weights
    last: ClassVar[TimingCallback | None] = None  # the instance, which Hydra creates

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.num_params, self.flops = 0, 0.0
        TimingCallback.last = self

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the stopwatch, once the model is on its device."""
        self.watch = Stopwatch(**self.arguments)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts a step, after the other callbacks, so that their time is included."""
        module = training_module(pl_module)
        assert module.last_sums is not None
        if not self.flops:
            self.num_params = sum(p.numel() for p in module.model.parameters())
            self.flops = flops_per_token(module.model, batch)
        self.watch.after_step(module.last_sums.loss, module.last_sums.num_labels)


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `xftrain:<backend>` or `xftrain:<backend>:<overrides>`."""
    cfg = compose(*config_overrides(setup))
    path = f"{TimingCallback.__module__}.{TimingCallback.__name__}"
    node = {"_target_": path, **Stopwatch.arguments(setup)}
    OmegaConf.update(cfg, "callbacks.timing", node, force_add=True)  # the last callback
    with tempfile.TemporaryDirectory() as folder:
        result = run(cfg, Path(folder))
    timing = TimingCallback.last
    assert timing is not None
    return {
        "parameters": timing.num_params,
        "model": setup.sizes.form,
        "kernel": result["kernel"],
        **timing.watch.figures(timing.flops, device_peak(setup)),
    }
