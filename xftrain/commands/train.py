"""Runs a training run: checks, builds, trains, and records the result in `result.json`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from xftrain.commands.callbacks import RunCallbacks
from xftrain.commands.description import adds_rows, resolved_yaml
from xftrain.commands.early_stop import StoppableTrainer
from xftrain.commands.fit import fit
from xftrain.commands.last_save import LastSave
from xftrain.commands.loggers import RunLoggers, writes_tensorboard
from xftrain.commands.model import build_model, build_module
from xftrain.commands.out_of_memory import out_of_memory_explained
from xftrain.commands.prepare import Prepared, prepare
from xftrain.commands.profilers import end_profile, stop_profiling
from xftrain.commands.quiet_lightning import quiet_lightning
from xftrain.commands.result_file import (
    log_summary,
    recorded,
    run_dir_for,
    write_failed_result,
)
from xftrain.commands.saved_choices import (
    Choices,
    SavedChoices,
    loss_name,
    machine_properties,
    saved_choices,
)
from xftrain.commands.signals import StopSignals
from xftrain.commands.start import RunStart
from xftrain.commands.sweep_job import compare_in_sweep
from xftrain.commands.trainer import build_trainer
from xftrain.config.checks import check_num_processes
from xftrain.config.compose import default_options, validate_as
from xftrain.config.run_config import RunConfig
from xftrain.config.tree import changes_tree
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder
from xftrain.kernels.matmul import Autotuner, autotuner_set
from xftrain.model.gpt import GPT
from xftrain.train import distributed
from xftrain.train.graphed_loop import GraphedLoop
from xftrain.train.module import TrainingModule
from xftrain.train.same_data import digest_of
from xftrain.utils import redaction
from xftrain.utils.compilation import reset_compilation
from xftrain.utils.device_memory import peak_memory_mib
from xftrain.utils.optional import optional_step
from xftrain.utils.processes import rank

log = logging.getLogger(__name__)


def run(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: RunConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Trains what the configuration describes.

    Args:
        cfg: what `xftrain.compose` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Returns:
        The content of `result.json` in the run folder: `status`, `error`, `stop_reason`, `kernel`,
        `data_digest`, `overrides`, `metrics` as TensorBoard names them, `tokens_per_s`,
        `peak_memory_mib`, `predicted_peak_mib`, `num_parameters`, `wall_s`, `steps`, `run_dir`,
        `versions`, `device`.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    quiet_lightning()
    run_dir = run_dir_for(run_dir)
    folder = RunFolder(run_dir, is_writer=rank() == 0, reserved=reserved)
    with recorded(folder) as result, _process_restored():
        checked = checked or validate_as(RunConfig, cfg)
        check_num_processes(checked.trainer.devices)
        distributed.set_lightning_rank()
        shown = _record_config(cfg, checked, folder)
        with StopSignals() as stop:
            prepared = prepare(checked, shown, run_dir)
            _record_data(prepared, run_dir, result)
            with out_of_memory_explained(prepared):
                _train(prepared, folder, result, stop)
    _log_summary(checked, result)
    return result


def _record_config(cfg: DictConfig, checked: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Writes the configuration, logs what differs from the defaults, and returns it to be shown."""
    shown = redaction.without_secrets(cfg, checked.to_dict())
    folder.write_config(resolved_yaml(cfg))
    log.info("%s", changes_tree(shown, default_options()))
    return shown


def _record_data(run: Prepared, run_dir: Path, result: dict[str, Any]) -> None:
    """Records the digest of the data and the run folder, and compares the data within a sweep."""
    result["data_digest"] = digest_of(run.data)
    # under torchrun, Hydra made a folder for each rank
    result["run_dir"] = distributed.broadcast_from_rank_0(str(run_dir))
    compare_in_sweep(Path(result["run_dir"]), result["data_digest"])


def _log_summary(checked: RunConfig, result: dict[str, Any]) -> None:
    """Logs the result of the run, on rank 0."""
    if rank() == 0:
        log_summary(result, with_tensorboard=writes_tensorboard(checked.logger))


def _train(run: Prepared, folder: RunFolder, result: dict[str, Any], stop: StopSignals) -> None:
    """Trains with the matmuls that the configuration chooses."""
    saved = saved_choices(run.ckpt, run.cfg.ckpt, folder)
    tuner = Autotuner(saved.matmul) if run.cfg.matmul == "auto" else None
    with autotuner_set(tuner):
        _build_and_fit(run, folder, result, stop, saved, tuner)


def _build_and_fit(
    run: Prepared,
    folder: RunFolder,
    result: dict[str, Any],
    stop: StopSignals,
    saved: SavedChoices,
    tuner: Autotuner | None,
) -> None:
    """Builds everything and trains; each figure is added to `result` as soon as it is known."""
    run_dir = Path(result["run_dir"])
    model = build_model(run, folder, result, saved)
    module = build_module(run, model)
    loggers = RunLoggers(run.cfg.logger, run_dir)
    callbacks = RunCallbacks(run.cfg.callbacks)
    start = _build_start(run, folder, loggers, run_dir, result["kernel"])
    own = [start, _choices(run, model, saved, tuner, result["kernel"]), LastSave()]
    trainer = build_trainer(
        run.cfg,
        run_dir,
        run.device,
        run.precision,
        [*own, *callbacks.all, *callbacks.bars, stop],
        start.early_loggers,
        show_bar=bool(callbacks.bars),
        key_of=callbacks.key_of,
    )
    if run.cfg.compile == "cudagraphs":
        trainer.fit_loop.epoch_loop = GraphedLoop(trainer, module)
    _fit_and_validate(run, trainer, module, loggers, callbacks, stop, result)


def _fit_and_validate(
    run: Prepared,
    trainer: StoppableTrainer,
    module: TrainingModule,
    loggers: RunLoggers,
    callbacks: RunCallbacks,
    stop: StopSignals,
    result: dict[str, Any],
) -> None:
    """Trains and validates; closes the loggers and records the figures, however training ends."""
    run_dir = Path(result["run_dir"])
    if rank() == 0:
        callbacks.watch(
            lambda message: write_failed_result(
                _with_progress(result, trainer, module), run_dir, message
            )
        )
    is_complete = False
    try:
        fit(run, trainer, module)
        result["stop_reason"] = trainer.stop_reason()
        stop.end_if_received()
        result["metrics"] = _finish(run, trainer, module, run_dir)
        loggers.end_hparams()
        is_complete = True
    finally:
        loggers.close(is_complete=is_complete)
        callbacks.end()
        stop_profiling(trainer)
        result |= _final_progress(result, trainer, module)
        result["peak_memory_mib"] = round(peak_memory_mib(run.device), 1)
        result["tokens_per_s"] = callbacks.tokens_per_s()


def _build_start(
    run: Prepared, folder: RunFolder, loggers: RunLoggers, run_dir: Path, kernel: str
) -> RunStart:
    """Builds the callback that prepares the folder and the loggers once training starts."""
    return RunStart(
        folder,
        run.ckpt,
        loggers.all,
        is_same=adds_rows(run.cfg.callbacks, run_dir),
        on_start=partial(loggers.start, run.shown, kernel, run.data),
    )


def _choices(
    run: Prepared, model: GPT, saved: SavedChoices, tuner: Autotuner | None, kernel: str
) -> Choices:
    """Builds the callback that saves automatic choices for a run that resumes this one."""
    loss = loss_name(run.loss, run.batch, run.vocab_size, run.device)
    ran_as = {"precision": run.precision, "attention kernel": kernel, "loss": loss}
    return Choices(model.backend, ran_as | machine_properties(run.device), saved, tuner)


def _finish(
    run: Prepared, trainer: pl.Trainer, module: TrainingModule, run_dir: Path
) -> dict[str, float]:
    """Validates after the last step, and returns all metrics and the data's baseline."""
    keys = run.cfg.trainer
    if keys.profiler:
        with optional_step("trainer.profiler"):
            end_profile(trainer, run_dir)
    if module.validated_at != trainer.global_step and keys.limit_val_batches != 0:
        trainer.validate(module, verbose=False, weights_only=True)
    # the baseline is over all validation batches, so it is not comparable with fewer
    validates_all = keys.limit_val_batches is None and not keys.overfit_batches
    baseline: dict[str, float] = {}
    if validates_all:
        with optional_step("the data's baseline"):
            baseline = module.data.baseline()
    for logger in trainer.loggers:
        if baseline:
            logger.log_metrics(baseline, step=trainer.global_step)
        logger.save()
    return module.latest_metrics | baseline


def _with_progress(
    result: Mapping[str, Any], trainer: pl.Trainer, module: TrainingModule
) -> dict[str, Any]:
    """Adds the number of steps and the latest metrics to a result."""
    return {**result, "steps": trainer.global_step, "metrics": dict(module.latest_metrics)}


def _final_progress(
    result: Mapping[str, Any], trainer: pl.Trainer, module: TrainingModule
) -> dict[str, Any]:
    """The number of steps of a run that ends, and its latest metrics if it was interrupted."""
    was_interrupted = not result["metrics"]
    return (
        _with_progress(result, trainer, module)
        if was_interrupted
        else {"steps": trainer.global_step}
    )


@contextmanager
def _process_restored() -> Iterator[None]:
    """Restores the state of the process after a run, and disconnects its ranks."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    is_complete = False
    try:
        yield
        is_complete = True
    finally:
        distributed.disconnect(together=is_complete)
        torch.use_deterministic_algorithms(was_deterministic)
        reset_compilation()
