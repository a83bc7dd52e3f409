"""Lightning's Trainer, from the keys under `trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from xftrain.fields import NonNegativeInt, PositiveFloat, PositiveInt
from xftrain.training.checkpoint import AtomicCheckpointIO
from xftrain.training.distributed import DDP
from xftrain.training.early_stop import StoppableTrainer, StopReason, TimeLimit
from xftrain.training.profilers import build_profiler


def build_trainer(
    run_dir: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    max_steps: int,
    deterministic: bool,
    show_bar: bool,
    *,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: PositiveInt = 1,
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true"] = "auto",
    accumulate_grad_batches: PositiveInt = 1,
    gradient_clip_val: PositiveFloat | None = 1.0,
    log_every_n_steps: PositiveInt = 10,
    val_check_interval: PositiveInt = 20,
    num_sanity_val_steps: NonNegativeInt = 0,
    limit_val_batches: NonNegativeInt | None = None,
    overfit_batches: NonNegativeInt = 0,
    detect_anomaly: bool = False,
    profiler: Literal["simple", "advanced", "pytorch"] | None = None,
    max_time: str | None = None,
) -> StoppableTrainer:
    """The trainer of one run; the keyword-only parameters are Lightning's own keys.

    `use_instead` says what to use in place of keys that are missing here.

    Args:
        run_dir: where Lightning may write.
        callbacks: in the order in which they are called.
        loggers: TensorBoard, CSV.
        max_steps: optimizer steps.
        deterministic: refuse operations that differ from run to run.
        show_bar: whether one of the callbacks is a progress bar.
        accelerator: auto, cpu or gpu.
        devices: number of devices, each with a process of its own, see `ranks`; several make
            DistributedDataParallel of it.
        precision: already resolved, see `hardware.resolve`.
        accumulate_grad_batches: batches an optimizer step.
        gradient_clip_val: largest gradient norm; None does not clip.
        log_every_n_steps: optimizer steps between records of the training metrics.
        val_check_interval: training batches between validations.
        num_sanity_val_steps: validation batches before the first step.
        limit_val_batches: validation batches to use; None is all, and 0 validates nothing.
        overfit_batches: the only training batches there are, and what is validated on; 0 is no
            limit. Our loaders do it, as Lightning's own way is to replace samplers.
        detect_anomaly: NaN in the backward pass is an error that names the operation.
        profiler: what measures where the time goes, see `build_profiler`.
        max_time: `days:hours:minutes:seconds` after which the run ends; None is no limit.
    """
    limits = [TimeLimit(max_time)] if max_time is not None else []
    trainer = StoppableTrainer(
        accelerator=accelerator,
        devices=devices,
        strategy=DDP() if devices > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=gradient_clip_val,
        log_every_n_steps=log_every_n_steps,
        val_check_interval=val_check_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=num_sanity_val_steps,
        limit_val_batches=limit_val_batches,
        detect_anomaly=detect_anomaly,
        profiler=build_profiler(profiler, run_dir),
        max_steps=max_steps,
        max_epochs=-1,
        deterministic=deterministic,
        callbacks=[StopReason(), *callbacks, *limits],
        logger=loggers or False,
        # the ranks are there already; under Slurm, Lightning would take over its signals
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=run_dir,
        # true without a checkpoint callback would add Lightning's own
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=show_bar,
        enable_model_summary=False,  # one line of ours
        use_distributed_sampler=False,  # every batch knows its rank
        inference_mode=False,  # validation shares the training step's compiled code
    )
    trainer._checkpoint_connector = _NamedCheckpoints(trainer)
    # Its own word on SIGTERM, by which each of several ranks would wait for the device in each
    # step; see `signals`
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


class _NamedCheckpoints(_CheckpointConnector):
    """Reads no checkpoint but the one that is named.

    In a Slurm job Lightning's own takes `hpc_ckpt_*.ckpt` of the run's folder, whoever wrote it,
    also to validate with.
    """

    @property
    def _hpc_resume_path(self) -> None:
        return None
