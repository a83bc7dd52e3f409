"""Describes a run: its resolved configuration, its hyperparameters, its model and its batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from xftrain.config import registry
from xftrain.config.run_config import Options, RunConfig
from xftrain.interfaces import Batch
from xftrain.model.gpt import GPT
from xftrain.train.same_run import flat
from xftrain.utils import redaction

log = logging.getLogger(__name__)

_NO_HPARAMS = ("callbacks", "logger", "ckpt", "ckpt_allow", "tags")


def resolved_yaml(cfg: DictConfig) -> str:
    """The resolved configuration as YAML, with the user's own `_target_`s unchanged."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    shown = redaction.without_secrets(cfg, {str(key): value for key, value in values.items()})
    return OmegaConf.to_yaml(OmegaConf.create(shown))


def hyperparameters(options: Mapping[str, Any], typed: Mapping[str, str]) -> dict[str, Any]:
    """The hyperparameters by dotted key; runs with the same options have the same keys.

    Overrides that are not a value of the configuration, such as `model` or `experiment`, are
    added.
    """
    values = flat({key: value for key, value in options.items() if key not in _NO_HPARAMS})
    more = {key: value for key, value in typed.items() if f"{key}.name" not in values}
    return more | values


def log_model_and_batch(
    model: GPT, cfg: RunConfig, batch: Batch, device: torch.device, precision: str
) -> None:
    """Logs the size of the model, its options, and the first batch."""
    num_params = sum(parameter.numel() for parameter in model.parameters())
    rows, positions = batch.shape_BM
    chosen = " ".join(
        f"{part}={getattr(cfg.model, part).name or 'custom'}"
        for part in ("attn", "bias", "pos", "heads", "ffn", "norm")
    )
    if pattern := cfg.model.layers.pattern:
        chosen += f" layers=[{','.join(pattern)}]"
    log.info("model: %s parameters, %s", f"{num_params:,}", chosen)
    log.info("batch: %d x %d tokens on %s, %s", rows, positions, device.type, precision)
    if (devices := cfg.trainer.devices) > 1:
        log.info("devices: %d, each with a batch of this size in each step", devices)
    log.debug("%s", model)
    if overfit_batches := cfg.trainer.overfit_batches:
        log.info("overfitting: training batches, validated on as well: %d", overfit_batches)
    if model.uninitialized:
        log.info("kept their own initialization: %s", ", ".join(model.uninitialized))


def adds_rows(callbacks: Options, run_dir: Path) -> bool:
    """Whether this run is a benchmark that adds rows to those in the folder."""
    names = [callback.name for callback in callbacks.values()]
    return any(map(registry.measures_times, names)) and (run_dir / "rows.jsonl").is_file()
