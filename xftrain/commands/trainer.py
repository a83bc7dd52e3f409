"""Builds Lightning's Trainer from the keys under `trainer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from xftrain.checkpoint.file import AtomicCheckpointIO
from xftrain.commands.early_stop import StoppableTrainer, StopReason, TimeLimit
from xftrain.commands.profilers import build_profiler
from xftrain.config.run_config import RunConfig
from xftrain.train.distributed import DDP, StartedRanks

# Keys under `trainer` that Lightning has too, with the same meaning.
_SHARED_KEYS = (
    "accumulate_grad_batches",
    "devices",
    "gradient_clip_val",
    "log_every_n_steps",
    "val_check_interval",
    "num_sanity_val_steps",
    "limit_val_batches",
    "detect_anomaly",
)


def build_trainer(
    cfg: RunConfig,
    run_dir: Path,
    device: torch.device,
    precision: str,
    callbacks: list[Callback],
    loggers: list[Logger],
    *,
    show_bar: bool,
    key_of: Callable[[Callback], str | None],
) -> StoppableTrainer:
    """Builds the trainer of a run.

    Args:
        cfg: the checked configuration, whose `trainer` has Lightning's own keys.
        run_dir: the folder in which Lightning may write.
        device: the device resolved from `trainer.accelerator`, see `hardware.resolve`.
        precision: the precision resolved from `trainer.precision`.
        callbacks: in the order in which they are called.
        loggers: loggers such as TensorBoard and CSV.
        show_bar: whether one of the callbacks is a progress bar.
        key_of: returns the key of a callback in the configuration, or None.
    """
    trainer = StoppableTrainer(
        **_settings(cfg),
        accelerator="gpu" if device.type == "cuda" else "cpu",
        precision=precision,  # type: ignore[arg-type]
        profiler=build_profiler(cfg.trainer.profiler, run_dir),
        callbacks=[StopReason(key_of), *callbacks, *_time_limits(cfg)],
        logger=loggers or False,
        # the ranks are running already; under Slurm, Lightning would install signal handlers
        plugins=[AtomicCheckpointIO(), StartedRanks()],
        default_root_dir=run_dir,
        # true without a checkpoint callback would add Lightning's own
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=show_bar,
    )
    trainer.run_config = cfg
    _replace_slow_and_unsafe_parts(trainer)
    return trainer


def _time_limits(cfg: RunConfig) -> list[Callback]:
    """Lightning's callback for `trainer.max_time`."""
    return [] if cfg.trainer.max_time is None else [TimeLimit(cfg.trainer.max_time)]


def _settings(cfg: RunConfig) -> dict[str, Any]:
    """Lightning's arguments that need nothing but the configuration."""
    return {
        **{key: getattr(cfg.trainer, key) for key in _SHARED_KEYS},
        "max_steps": cfg.max_steps,
        "max_epochs": -1,
        "deterministic": cfg.deterministic,
        "strategy": DDP() if cfg.trainer.devices > 1 else "auto",
        "check_val_every_n_epoch": None,
        "enable_model_summary": False,  # xftrain logs one line instead
        "use_distributed_sampler": False,  # the data source takes the rank
        "inference_mode": False,  # validation shares the training step's compiled code
    }


def _replace_slow_and_unsafe_parts(trainer: StoppableTrainer) -> None:
    """Replaces parts of Lightning that wait in each step, or restore untrusted checkpoints."""
    trainer._checkpoint_connector = _NamedCheckpoints(trainer)
    # Lightning's own handling of SIGTERM makes several ranks wait for the device in each step; see
    # `signals`
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class _NamedCheckpoints(_CheckpointConnector):
    """Restores only the checkpoint that is given by `ckpt`.

    In a Slurm job, Lightning would also restore an untrusted `hpc_ckpt_*.ckpt` from the run's
    folder, even for validation.
    """

    @property
    def _hpc_resume_path(self) -> None:
        return None
