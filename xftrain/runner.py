"""One run: check, build, train, and say how it went in `result.json`."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf

from xftrain import builder, config, redaction, registry
from xftrain.compilation import end_compiling
from xftrain.config_checks import refuse_other_ranks
from xftrain.config_tree import changes
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.kernels.matmul import disable_autotune, enable_autotune
from xftrain.memory import is_out_of_memory, peak_memory_mib
from xftrain.neighboring_runs import differing_keys
from xftrain.oom import out_of_memory
from xftrain.peak.plan import plan_memory
from xftrain.prepare import Prepared, prepare
from xftrain.processes import rank
from xftrain.results import (
    abandon,
    changed_overrides,
    is_multirun_job,
    log_summary,
    recorded,
    run_dir_for,
)
from xftrain.run_description import adds_rows, hparams_of, log_what_is_trained, resolved
from xftrain.run_folder import RunFolder
from xftrain.training import distributed, hardware
from xftrain.training.callbacks.metrics import Metrics
from xftrain.training.callbacks.progress import Progress
from xftrain.training.callbacks.watchdog import Watchdog
from xftrain.training.choices import Choices, choose_kernel, kind_of, on_machine, saved_choices
from xftrain.training.graphed_loop import GraphedLoop
from xftrain.training.last_save import LastSave
from xftrain.training.loggers.tensorboard import TensorBoard
from xftrain.training.module import TrainingModule
from xftrain.training.nonfinite import NonFiniteGuard
from xftrain.training.optional import optional
from xftrain.training.profilers import end_profile, stop_profiling
from xftrain.training.quiet_lightning import quiet_lightning
from xftrain.training.run_start import RunStart
from xftrain.training.same_run import flat
from xftrain.training.signals import StopSignals
from xftrain.training.text import log_text
from xftrain.training.tracker import Tracker
from xftrain.training.trainer import build_trainer

log = logging.getLogger(__name__)

_BAD_STATE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
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
        What `result.json` in the run folder holds: `status`, `error`, `stop_reason`, `kernel`,
        `overrides`, `metrics` as TensorBoard names them, `tokens_per_s`, `peak_memory_mib`,
        `predicted_peak_mib`, `num_parameters`, `wall_s`, `steps`, `run_dir`, `versions`, `device`.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    quiet_lightning()
    run_dir = run_dir_for(run_dir)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    is_whole = False
    folder = RunFolder(run_dir, is_kept=rank() == 0)
    with recorded(folder) as result:
        try:
            options = config.validate(cfg)
            shown = redaction.without_secrets(cfg, options)
            refuse_other_ranks(options["trainer"]["devices"])
            folder.write_config(resolved(cfg))
            log.info("%s", changes(shown, config.default_options()))
            with StopSignals() as stop:
                prepared = prepare(options, shown, run_dir)
                run_dir = distributed.from_rank_0(run_dir)  # under torchrun each had its own
                result["run_dir"] = str(run_dir)
                _train(prepared, folder, result, stop)
            is_whole = True
        finally:
            distributed.disconnect(together=is_whole)
            torch.use_deterministic_algorithms(was_deterministic)
            end_compiling()
            disable_autotune()
    if rank() == 0:
        kinds = [logger.get("name") for logger in options["logger"].values()]
        log_summary(result, has_board="tensorboard" in kinds)
    return result


def _train(
    prepared: Prepared, folder: RunFolder, result: dict[str, Any], stop: StopSignals
) -> None:
    """Fits; where memory runs out, says what would save some."""
    try:
        _fit(prepared, folder, result, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, prepared) from error


def _fit(prepared: Prepared, folder: RunFolder, result: dict[str, Any], stop: StopSignals) -> None:
    """Builds everything and fits; the result gains each figure as soon as it is known."""
    run_dir = Path(result["run_dir"])
    options, shown, data, batch = prepared.options, prepared.shown, prepared.data, prepared.batch
    device, precision = prepared.device, prepared.precision
    torch.manual_seed(options["seed"])
    model = builder.assemble(options, prepared.vocab_size)
    log_what_is_trained(model, options, batch, device, precision)
    result["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    result["device"] = hardware.device_name(device)
    saved = saved_choices(prepared.ckpt, options["ckpt"], folder)
    kernel = choose_kernel(model, batch, device, prepared.dtype, saved, folder)
    result["kernel"] = kernel
    enable_autotune(options["matmul"], saved.matmul)  # products that are chosen keep less
    predicted = plan_memory(options, model, prepared.loss, batch, prepared.dtype, device)
    result["predicted_peak_mib"] = predicted and round(predicted, 1)
    if options["compile"]:
        torch._dynamo.reset()  # of a former run in this process, whose blocks were others
        model.compile_blocks(packed=batch.seqlens is not None)

    optim = registry.build("optim", "optim", options["optim"])
    schedule = registry.build("schedule", "schedule", options["schedule"])
    guard = NonFiniteGuard(**{key: options[key] for key in config.GUARD_KEYS})
    module = TrainingModule(
        model,
        prepared.loss,
        data,
        optim,
        schedule,
        seed=options["seed"],
        saved={"config": shown, "environment": redaction.digests()},
        guard=guard,
        overfit_batches=options["trainer"]["overfit_batches"],
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
    # first, to be done with before another callback's `on_fit_end`
    watchdogs = [callback for callback in callbacks if isinstance(callback, Watchdog)]
    callbacks = [*watchdogs, *(callback for callback in callbacks if callback not in watchdogs)]
    bars = [bar for c in callbacks if isinstance(c, Progress) and (bar := c.bar())]
    boards = [logger for logger in loggers if isinstance(logger, TensorBoard)]

    trackers = [logger for logger in loggers if isinstance(logger, Tracker)]

    def on_begin() -> None:
        for tracker in trackers:
            tracker.begin(flat(shown))
        log_text(loggers, "kernel", kernel)
        log_text(loggers, "config", OmegaConf.to_yaml(OmegaConf.create(shown)))
        typed = changed_overrides()
        for board in boards:
            first = differing_keys(run_dir, typed, is_job=is_multirun_job())
            board.begin_hparams(hparams_of(shown, typed), _HPARAM_METRICS, first)

    is_same = adds_rows(options, run_dir)
    start = RunStart(folder, prepared.ckpt, loggers, is_same=is_same, on_begin=on_begin)
    loss = kind_of(prepared.loss, batch, prepared.vocab_size, device)
    ran_as = {"precision": precision, "attention kernel": kernel, "loss": loss}
    choices = Choices(model.backend, ran_as | on_machine(device), saved)
    trainer = build_trainer(
        run_dir,
        [start, choices, LastSave(), *callbacks, *bars, stop],
        start.early_loggers,
        options["max_steps"],
        options["deterministic"],
        bool(bars),
        **{
            **options["trainer"],
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "precision": precision,
        },
    )
    if options["compile"] == "cudagraphs":
        trainer.fit_loop.epoch_loop = GraphedLoop(trainer, module)

    def known() -> dict[str, Any]:
        reached = {"steps": trainer.global_step, "metrics": dict(module.latest)}
        return {**result, **reached}

    for watchdog in watchdogs if rank() == 0 else []:
        watchdog.on_hang = lambda said: abandon(known(), run_dir, said)
    is_whole = False
    try:
        with _restoring(prepared.ckpt, module):
            trainer.fit(module, ckpt_path=prepared.ckpt, weights_only=True)
        result["stop_reason"] = trainer.stop_reason()
        stop.end_if_received()
        if options["trainer"]["profiler"]:
            with optional("trainer.profiler"):
                end_profile(trainer, run_dir)
        result["metrics"] = _finish(trainer, module, options["trainer"])
        for board in boards:
            with optional("TensorBoard's record of the end"):
                board.end_hparams()
                board.save()
        is_whole = True
    finally:
        for tracker in trackers:
            tracker.close_run(is_whole=is_whole)
        for watchdog in watchdogs:
            watchdog.end()
        stop_profiling(trainer)
        cut_off = not result["metrics"]
        result |= known() if cut_off else {"steps": trainer.global_step}
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        speeds = [c.typical_tokens_per_s() for c in callbacks if isinstance(c, Metrics)]
        result["tokens_per_s"] = next(iter(speeds), None)


@contextmanager
def _restoring(ckpt: Path | None, module: TrainingModule) -> Iterator[None]:
    """Says of an error before the first step that the checkpoint is to blame."""
    try:
        yield
    except _BAD_STATE as error:
        is_told = isinstance(error, ConfigError | RunError) or is_out_of_memory(error)
        frames = traceback.walk_tb(error.__traceback__)
        places = {Path(frame.f_code.co_filename).name for frame, _ in frames}
        if ckpt is None or module.has_begun or is_told or "checkpoint_connector.py" not in places:
            raise
        raise ConfigError(
            f"ckpt={ckpt} cannot be resumed ({first_line(error)}): what it holds is not what "
            "this version of xftrain saves; give another one, or none to start afresh."
        ) from error


def _finish(
    trainer: pl.Trainer, module: TrainingModule, keys: Mapping[str, Any]
) -> dict[str, float]:
    """Validates where the run ended, and returns all metrics with the data's own baseline."""
    if module.validated_at != trainer.global_step and keys["limit_val_batches"] != 0:
        trainer.validate(module, verbose=False, weights_only=True)
    # it is of all validation batches, and comparable with nothing else
    is_whole = keys["limit_val_batches"] is None and not keys["overfit_batches"]
    baseline: dict[str, float] = {}
    if is_whole:
        with optional("the data's baseline"):
            baseline = module.data.baseline()
    for logger in trainer.loggers:
        if baseline:
            logger.log_metrics(baseline, step=trainer.global_step)
        logger.save()
    return module.latest | baseline
