"""One run: check, build, train, and say how it went in `result.json`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf

from xftrain import builder, config, registry
from xftrain.interfaces import Batch
from xftrain.memory import peak_memory_mib, reset_peak_memory
from xftrain.model import GPT
from xftrain.preflight import check_runs
from xftrain.results import folder_of, recorded, say_how_it_went
from xftrain.training import hardware
from xftrain.training.callbacks.metrics import Metrics
from xftrain.training.callbacks.progress import Progress
from xftrain.training.checkpoint import checkpoint_to_load, flat
from xftrain.training.loggers.tensorboard import TensorBoard
from xftrain.training.module import TrainingModule
from xftrain.training.quiet import quiet_lightning
from xftrain.training.text import log_text
from xftrain.training.trainer import build_trainer

log = logging.getLogger(__name__)

_NO_HPARAMS = ("callbacks", "logger", "ckpt", "tags")
_HPARAM_METRICS = (
    "val/loss",
    "val/accuracy",
    "train/loss",
    "speed/tokens_per_s",
    "memory/peak_mib",
)


def run(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """Trains what the configuration describes.

    Args:
        cfg: what `xftrain.compose` returns.
        run_dir: the run's folder; made under `outputs/` where it is not given.

    Returns:
        What `result.json` in the run folder holds: `status`, `error`, `kernel`, `overrides`,
        `metrics` as TensorBoard names them, `tokens_per_s`, `peak_memory_mib`, `wall_s`, `steps`,
        `run_dir`, `versions`, `device`.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    quiet_lightning()
    run_dir = folder_of(run_dir)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with recorded(run_dir) as result:
        try:
            options = config.validate(cfg)
            _save_config(cfg, run_dir)
            _train(options, run_dir, result)
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
    say_how_it_went(result)
    return result


def _train(options: dict[str, Any], run_dir: Path, result: dict[str, Any]) -> None:
    """Builds everything and fits; the result gains each figure as soon as it is known."""
    accelerator, asked = options["trainer"]["accelerator"], options["trainer"]["precision"]
    device, precision = hardware.resolve(accelerator, asked)
    dtype = hardware.compute_dtype(precision)
    _set_determinism(options["deterministic"])
    reset_peak_memory(device)
    pl.seed_everything(options["seed"], verbose=False)
    # refused now rather than after the data is prepared
    ckpt = checkpoint_to_load(options["ckpt"], run_dir)
    if ckpt is None:
        (run_dir / "metrics.csv").unlink(missing_ok=True)  # of another run in this folder

    data = builder.build_data(options)
    loss = builder.build_loss(options)
    vocab_size = builder.vocab_size(options, data)
    batch = data.batch("train", 0)
    check_runs(options, loss, vocab_size, batch, device, dtype)
    torch.manual_seed(options["seed"])
    model = builder.assemble(options, vocab_size)
    _say_what_is_trained(model, options, batch, device, precision)
    result["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result["kernel"] = kernel = _choose_kernel(model, batch, device, dtype)
    if options["compile"]:
        torch._dynamo.reset()  # of a former run in this process, whose blocks were others
        model.compile_blocks(packed=batch.seqlens is not None)

    optim = registry.build("optim", "optim", options["optim"])
    module = TrainingModule(
        model, loss, data, optim, seed=options["seed"], saved={"config": options}
    )
    loggers = [
        # a logger of the user's own knows its places itself
        registry.build("logger", f"logger.{key}", node, *([run_dir] if "name" in node else []))
        for key, node in options["logger"].items()
    ]
    callbacks = [
        registry.build("callbacks", f"callbacks.{key}", node)
        for key, node in options["callbacks"].items()
    ]
    bars = [bar for c in callbacks if isinstance(c, Progress) and (bar := c.bar())]
    trainer = build_trainer(
        run_dir,
        [*callbacks, *bars],
        loggers,
        options["max_steps"],
        options["deterministic"],
        bool(bars),
        **{
            **options["trainer"],
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "precision": precision,
        },
    )
    log_text(loggers, "kernel", kernel)
    log_text(loggers, "config", OmegaConf.to_yaml(OmegaConf.create(options)))
    boards = [logger for logger in loggers if isinstance(logger, TensorBoard)]
    for board in boards:
        board.begin_hparams(_hparams(options), _HPARAM_METRICS)
    try:
        trainer.fit(module, ckpt_path=ckpt, weights_only=True)
        result["metrics"] = _finish(trainer, module)
        for board in boards:
            board.end_hparams()
            board.save()
    finally:
        result["steps"] = trainer.global_step
        result["metrics"] = result["metrics"] or dict(module.latest)  # of a run that was cut off
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        speeds = [c.typical_tokens_per_s() for c in callbacks if isinstance(c, Metrics)]
        result["tokens_per_s"] = next(iter(speeds), None)


def _hparams(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made of, by dotted keys; the same keys in every run with the same options."""
    return flat({key: value for key, value in options.items() if key not in _NO_HPARAMS})


def _finish(trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
    """Validates where the run ended, and returns all metrics with the data's own baseline."""
    if module.validated_at != trainer.global_step:
        trainer.validate(module, verbose=False, weights_only=True)
    baseline = module.data.baseline()
    for logger in trainer.loggers:
        if baseline:
            logger.log_metrics(baseline, step=trainer.global_step)
        logger.save()
    return module.latest | baseline


def _choose_kernel(model: GPT, batch: Batch, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the attention kernel that will run; `auto` measures and chooses here."""
    bias, shape = model.attention_facts(*batch.shape_BM, batch.seqlens)
    kernel = model.backend.kernel(bias, shape, dtype, device)
    log.info("attention kernel: %s", kernel)
    return kernel


def _say_what_is_trained(
    model: GPT, options: Mapping[str, Any], batch: Batch, device: torch.device, precision: str
) -> None:
    num_params = sum(parameter.numel() for parameter in model.parameters())
    rows, positions = batch.shape_BM
    chosen = " ".join(
        f"{group}={options['model'][group].get('name', 'custom')}"
        for group in ("attn", "bias", "pos", "heads", "ffn", "norm")
    )
    log.info("model: %s parameters, %s", f"{num_params:,}", chosen)
    log.info("batch: %d x %d tokens on %s, %s", rows, positions, device.type, precision)
    if model.uninitialized:
        log.info("kept their own initialization: %s", ", ".join(model.uninitialized))


def _set_determinism(deterministic: bool) -> None:
    """For this run; `run` puts back what was set before it."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def _save_config(cfg: DictConfig, run_dir: Path) -> None:
    """The resolved configuration, as typed; what `_target_` it has is the user's own."""
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
