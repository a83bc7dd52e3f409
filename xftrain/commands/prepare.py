"""Prepares a run: resolves device, precision, checkpoint and data before memory is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from xftrain.checkpoint.newest import checkpoint_to_load
from xftrain.commands import builder
from xftrain.commands.initial_weights import InitialWeights, initial_weights, with_vocab_size
from xftrain.commands.packing_choice import with_packing
from xftrain.commands.preflight import check_labels, check_runnable, first_batch
from xftrain.config import registry
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.interfaces import Batch, DataSource, Loss
from xftrain.train import distributed, hardware
from xftrain.train.same_data import check_data
from xftrain.utils.device_memory import reset_peak_memory
from xftrain.utils.processes import rank


@dataclass(frozen=True)
class Prepared:
    """Everything that is resolved about a run before memory is allocated.

    Attributes:
        cfg: the checked configuration, with `data.packing` decided.
        shown: its plain values with secrets hidden.
        device: the device of this rank.
        precision: Lightning's name of the precision.
        dtype: dtype of matmuls and attention.
        ckpt: the checkpoint to resume, or None.
        initial: the weights to begin with, or None.
        data: the data source.
        loss: the cross-entropy loss.
        vocab_size: V.
        batch: the first training batch.
    """

    cfg: RunConfig
    shown: dict[str, Any]
    device: torch.device
    precision: str
    dtype: torch.dtype
    ckpt: Path | None
    initial: InitialWeights | None
    data: DataSource
    loss: Loss
    vocab_size: int
    batch: Batch


def prepare(cfg: RunConfig, shown: dict[str, Any], run_dir: Path) -> Prepared:
    """Resolves and checks everything that a run needs, and connects the ranks.

    Args:
        cfg: the checked configuration.
        shown: its plain values with secrets hidden.
        run_dir: the run folder.

    Raises:
        ConfigError: an option cannot run; the message says which, why, and what would.
    """
    registry.check_own_classes(cfg.option_configs())
    trainer, own_rank = cfg.trainer, rank()
    devices = trainer.devices
    device, precision = hardware.resolve(trainer.accelerator, trainer.precision, devices, own_rank)
    distributed.connect(device, devices)
    dtype = hardware.compute_dtype(precision)
    _set_determinism(cfg.deterministic)
    reset_peak_memory(device)
    pl.seed_everything(cfg.seed, verbose=False)
    # before the data is prepared, so that a wrong ckpt is refused early
    ckpt = _checkpoint(cfg, run_dir)
    initial = initial_weights(cfg, shown, ckpt)
    if initial is not None:
        initial.check(cfg, None)
    cfg, shown = with_packing(cfg, shown, ckpt, device, dtype)
    data = _checked_data(cfg)
    cfg, shown = with_vocab_size(cfg, shown, ckpt, initial, data)
    if initial is not None:
        initial.check(cfg, data)
    loss = builder.build_loss(cfg)
    vocab_size = builder.vocab_size(cfg.model, data)
    batch = first_batch(data, own_rank)
    check_runnable(cfg, loss, vocab_size, batch, device, dtype)
    resolved = (cfg, shown, device, precision, dtype, ckpt, initial)
    return Prepared(*resolved, data, loss, vocab_size, batch)


def _checkpoint(cfg: RunConfig, run_dir: Path) -> Path | None:
    """The checkpoint to resume; only rank 0 looks, since files may change between ranks' reads."""
    ckpt = checkpoint_to_load(cfg.ckpt, run_dir) if rank() == 0 else None
    name = distributed.broadcast_from_rank_0(ckpt and str(ckpt))
    return None if name is None else Path(name)


def _checked_data(cfg: RunConfig) -> DataSource:
    """Builds the data source, and checks that every rank has something to validate."""
    devices = cfg.trainer.devices
    data = builder.build_data(cfg, devices)
    check_data(data)
    if data.num_val_batches < devices:
        raise ConfigError(
            f"trainer.devices must be at most the number of validation batches, "
            f"{data.num_val_batches}, got {devices}: each rank validates some of them."
        )
    check_labels(data, cfg.trainer)
    return data


def _set_determinism(deterministic: bool) -> None:
    """Sets torch's determinism for this run; `run` restores the previous setting."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
