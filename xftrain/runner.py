"""One run: check, build, train, and say how it went in `result.json`."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xftrain import builder, config, registry
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import Batch
from xftrain.model import GPT
from xftrain.preflight import check_runs
from xftrain.training import hardware
from xftrain.training.callbacks.metrics import Metrics, peak_memory_mib
from xftrain.training.callbacks.progress import Progress
from xftrain.training.checkpoint import read_checkpoint
from xftrain.training.module import TrainingModule
from xftrain.training.quiet import quiet_lightning
from xftrain.training.text import log_text
from xftrain.training.trainer import build_trainer

log = logging.getLogger(__name__)

_PACKAGES = ("xftrain", "torch", "xformers", "lightning", "hydra-core", "omegaconf")


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
    started = time.perf_counter()
    quiet_lightning()
    run_dir = run_dir or Path("outputs", *datetime.now().strftime("%Y-%m-%d %H-%M-%S").split())
    if run_dir.is_relative_to(Path.cwd()):
        run_dir = run_dir.relative_to(Path.cwd())
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "result.json").unlink(missing_ok=True)  # of an earlier run in this folder
    result = _empty_result(run_dir)
    try:
        options = config.validate(cfg)
        _save_config(cfg, run_dir)
        result.update(_train(options, run_dir))
        result["status"] = "completed"
    except BaseException as error:
        result["status"] = "refused" if isinstance(error, ConfigError) else "failed"
        said = isinstance(error, ConfigError | RunError)
        result["error"] = str(error) if said else f"{type(error).__name__}: {error}"
        raise
    finally:
        result["wall_s"] = round(time.perf_counter() - started, 3)
        _write_result(result, run_dir)
    _say_how_it_went(result)
    return result


def _train(options: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Builds everything and fits; returns what the result gains."""
    accelerator, asked = options["trainer"]["accelerator"], options["trainer"]["precision"]
    device, precision = hardware.resolve(accelerator, asked)
    dtype = hardware.compute_dtype(precision)
    _set_determinism(options["deterministic"])
    pl.seed_everything(options["seed"], verbose=False)
    # refused now rather than after the data is prepared
    ckpt = _checkpoint_to_load(options["ckpt"], run_dir)
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
    kernel = _choose_kernel(model, batch, device, dtype)
    if options["compile"]:
        model.compile_blocks(packed=batch.seqlens is not None)

    optim = registry.build("optim", "optim", options["optim"])
    module = TrainingModule(model, loss, data, optim, saved={"config": options})
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
        **{**options["trainer"], "precision": precision},
    )
    log_text(loggers, "kernel", kernel)
    log_text(loggers, "config", OmegaConf.to_yaml(OmegaConf.create(options)))
    trainer.fit(module, ckpt_path=ckpt, weights_only=True)
    metrics = _finish(trainer, module)
    speed = next((c.typical_tokens_per_s() for c in callbacks if isinstance(c, Metrics)), None)
    return {
        "kernel": kernel,
        "metrics": metrics,
        "tokens_per_s": speed,
        "peak_memory_mib": round(peak_memory_mib(device), 1),
        "steps": trainer.global_step,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


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


def _checkpoint_to_load(ckpt: str | None, run_dir: Path) -> Path | None:
    """The file to go on from: the path given, or for `auto` the newest valid one of the run.

    Raises:
        ConfigError: the file is damaged; for `auto`, every file of the run is.
    """
    if ckpt is None:
        return None
    if ckpt != "auto":
        path = Path(ckpt).expanduser()
        read_checkpoint(path)
        return path
    files = sorted(run_dir.glob("checkpoints/*.ckpt"), key=lambda f: f.stat().st_mtime_ns)
    if not files:
        log.info("ckpt=auto: no checkpoint in %s yet, starting at step 0", run_dir)
        return None
    for path in reversed(files):
        try:
            step = read_checkpoint(path)["global_step"]
        except ConfigError as error:
            log.warning("ckpt=auto: skipped: %s", error)
        else:
            log.info("ckpt=auto: going on from %s, step %d", path, step)
            return path
    raise ConfigError(
        f"ckpt=auto found {len(files)} checkpoint(s) in {run_dir / 'checkpoints'} and none can be "
        "read: give the path of a good one, or another hydra.run.dir to start afresh."
    )


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
    """Also switches a former run's choice off, in a process that makes several runs."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def _save_config(cfg: DictConfig, run_dir: Path) -> None:
    """The resolved configuration, as typed; what `_target_` it has is the user's own."""
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")


def _empty_result(run_dir: Path) -> dict[str, Any]:
    return {
        "status": "running",
        "error": None,
        "kernel": None,
        "overrides": _overrides(),
        "metrics": {},
        "tokens_per_s": None,
        "peak_memory_mib": None,
        "wall_s": None,
        "steps": 0,
        "run_dir": str(run_dir),
        "versions": _versions(),
        "device": None,
    }


def _overrides() -> list[str]:
    if not HydraConfig.initialized():
        return []
    return [str(override) for override in HydraConfig.get().overrides.task]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["torch"] = torch.__version__  # names the build: +cpu, +cu130
    return versions


def _write_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """`result.json`, whole or absent; JSON has no NaN, so such a number becomes null.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    plain = {
        **result,
        "metrics": {name: _json_number(value) for name, value in result["metrics"].items()},
    }
    partial = run_dir / ".result.json.partial"
    try:
        partial.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(run_dir / "result.json")
    except OSError as error:
        raise RunError(
            f"{run_dir / 'result.json'} could not be written ({error}): free space on its disk or "
            "choose another hydra.run.dir."
        ) from error


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _say_how_it_went(result: Mapping[str, Any]) -> None:
    """The last lines of a run: figures, folder, and how to look at it."""
    metrics = result["metrics"]
    parts = [f"loss {metrics['val/loss']:.4f}", f"accuracy {metrics['val/accuracy']:.2%}"]
    if "val/bits_per_byte" in metrics:
        parts.append(f"{metrics['val/bits_per_byte']:.3f} bits per byte")
    if "val/bits_per_byte_bigram" in metrics:
        parts.append(f"byte bigram {metrics['val/bits_per_byte_bigram']:.3f}")
    speed = result["tokens_per_s"]
    said = f", {speed:,.0f} tokens/s" if speed else ""
    log.info("done in %.1f s: %d steps%s", result["wall_s"], result["steps"], said)
    log.info("validation: %s", ", ".join(parts))
    log.info("run folder: %s", result["run_dir"])
    folder = Path(result["run_dir"])
    log.info("tensorboard --logdir %s", folder.parts[0] if not folder.is_absolute() else folder)
