"""xftrain as a user runs it: `xftrain.run` of a configuration, timed by a callback in it."""

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


class Timed(Callback):
    """The stopwatch of the other peers, at the same place of a step.

    Args:
        arguments: of the stopwatch.
    """

    modifies_weights = False  # or the run would have no copies of them
    last: ClassVar[Timed | None] = None  # Hydra makes it, so this is how to find it again

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.num_params, self.flops = 0, 0.0
        Timed.last = self

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count; the model is on its device by now."""
        self.watch = Stopwatch(**self.arguments)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """One step, after the callbacks before it: what they record is within the time."""
        module = training_module(pl_module)
        assert module.last_sums is not None
        if not self.flops:
            self.num_params = sum(p.numel() for p in module.model.parameters())
            self.flops = flops_per_token(module.model, batch)
        self.watch.after_step(module.last_sums.loss, module.last_sums.num_labels)


def measure(setup: Setup) -> dict[str, Any]:
    """The row of `xftrain:<backend>`."""
    cfg = compose(*config_overrides(setup))
    target = {"_target_": f"{Timed.__module__}.Timed", **Stopwatch.arguments(setup)}
    OmegaConf.update(cfg, "callbacks.timed", target, force_add=True)  # the last of them
    with tempfile.TemporaryDirectory() as folder:
        result = run(cfg, Path(folder))
    timed = Timed.last
    assert timed is not None
    return {
        "parameters": timed.num_params,
        "model": setup.sizes.form,
        "kernel": result["kernel"],
        **timed.watch.figures(timed.flops, device_peak(setup)),
    }
