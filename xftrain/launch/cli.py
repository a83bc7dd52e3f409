"""The command line: prints one sentence and returns an exit code, however a command ends.

0 completed, 1 the run failed, 2 the configuration is wrong, 75 stopped by SIGUSR1 or SIGUSR2,
129 by SIGHUP, 130 interrupted, 143 stopped by SIGTERM, 152 by SIGXCPU.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from xftrain.commands.sweep_data import multirun_dir
from xftrain.config.checks import check_num_processes
from xftrain.config.compose import validate
from xftrain.config.merged_options import refuse_merged
from xftrain.config.overrides import all_groups, override_strings
from xftrain.config.registry import conf_dir, measures_times
from xftrain.config.run_config import RunConfig
from xftrain.config.schema import framework_schemas
from xftrain.errors import ConfigError, RunError, SweepRefused, first_line
from xftrain.folders.run_folder import holds_record
from xftrain.launch import ranks
from xftrain.launch.arguments import normalized_arguments
from xftrain.launch.completion import safe_completion
from xftrain.launch.dispatch import command_of
from xftrain.launch.ending import Ending, JobFailed
from xftrain.launch.field_values import values_of
from xftrain.launch.folder_hooks import release_folders
from xftrain.launch.gc_freeze import imports_frozen
from xftrain.launch.help_text import detailed_help
from xftrain.launch.hydra_errors import errors_raised
from xftrain.launch.hydra_files import hide_in_files
from xftrain.multirun import jobs, table
from xftrain.multirun import record as sweep_record
from xftrain.multirun.command_state import CommandState, current_state, state_of_command
from xftrain.multirun.completed_jobs import completed
from xftrain.multirun.job_config import job_description
from xftrain.utils import search_path
from xftrain.utils.console import protect_handlers, safe_streams, say, show_traceback
from xftrain.utils.processes import (
    check_rank_variables,
    die_with_parent,
    drop_empty_variables,
    drop_relative_base_folders,
    is_rank,
    raising_stopped,
    rank,
)
from xftrain.utils.redaction import hidden_in_message
from xftrain.utils.untrusted_folder import protect_libraries, protected_from_working_folder
from xftrain.version import __version__

log = logging.getLogger(__name__)

# Flags of commands that only print.
_PRINT_ONLY_FLAG = re.compile(  # argparse accepts abbreviations too
    r"--(v|he|hy|cf|i).*|-[hi].*|-c(job|hydra|all)?"
).fullmatch


def main() -> int:
    """Runs the command in `sys.argv` and returns its exit code."""
    is_printing = any(map(_PRINT_ONLY_FLAG, sys.argv[1:]))
    with safe_streams(is_printing=is_printing) as lost, state_of_command() as state:
        code = _run_command(state)
    return code or int(is_printing and bool(lost))


def _run_command(state: CommandState) -> int:
    """Runs the command, and returns its exit code, however it ends."""
    protect_libraries()
    # popped, since commands that this one starts must not inherit it
    message_file = os.environ.pop(jobs.MESSAGE_FILE_VARIABLE, None)
    ending = Ending(state.sweep, Path(message_file) if message_file else None)
    if message_file:
        die_with_parent(signal.SIGTERM)
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"xftrain {__version__}\n")
        return 0
    try:
        search_path.find_own_classes()
        drop_empty_variables()
        for message in drop_relative_base_folders():
            say(f"warning: {message}")
        check_rank_variables()
        _run_hydra(is_sweep_job=bool(message_file))
        return ending.finish_sweep()
    except BaseException as error:
        return ending.report_error(error)
    finally:
        release_folders(state.reserved)


def _run_hydra(*, is_sweep_job: bool) -> None:
    """Composes the configuration of `sys.argv`, and runs its jobs by `_job`."""
    with (
        protected_from_working_folder(),
        errors_raised(),
        raising_stopped(signal.SIGUSR1, signal.SIGUSR2),
    ):
        sys.argv[1:] = normalized_arguments(sys.argv[1:])  # Lightning reads it again
        decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
        with (
            safe_completion(all_groups, values_of),
            detailed_help(framework_schemas),
            ranks.rank_overrides(is_ours=is_sweep_job) as overrides,
        ):
            sys.argv += overrides
            decorate(_job)()


def _job(cfg: DictConfig) -> float | None:
    """Runs a single run, or one job of a sweep; returns the metric that a sweeper minimizes."""
    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    search_path.find_own_classes()  # again, as a launcher may have started this process
    protect_libraries()
    protect_handlers()
    if settings.output_subdir is not None:
        hide_in_files(run_dir / settings.output_subdir)
    if settings.mode == RunMode.MULTIRUN:
        return _multirun_job(cfg, settings, run_dir)
    try:
        result = _checked_run(cfg, settings, run_dir)
    except Exception as error:
        if rank() and ranks.is_caused_by_another_rank(error):  # which reports the cause itself
            message = f"rank {rank()} lost the other ranks ({first_line(error)})."
        else:
            message = _report(error, run_dir)
        raise JobFailed(message, 2 if isinstance(error, ConfigError) else 1) from error
    metrics: dict[str, float] = result.get("metrics", {})
    return metrics.get("val/loss")


def _multirun_job(cfg: DictConfig, settings: Any, run_dir: Path) -> float | None:
    """Runs a job of a sweep; if it fails, the sweep continues with the other jobs."""
    run_dir = Path(settings.runtime.cwd) / run_dir
    table.register_job(multirun_dir(settings), settings.job.num, run_dir)
    try:
        with raising_stopped():
            _refuse_parallel_benchmarks(cfg, settings)
            refuse_merged(settings)
            description = job_description(cfg, validate(cfg))
            is_new = cfg.get("ckpt") is None
            result = jobs.run_job(settings, run_dir, description, is_new=is_new)
    except Exception as error:
        if sweep_record.is_resumed() and completed(
            run_dir, override_strings(settings.overrides.task)
        ):
            raise SweepRefused(f"job {settings.job.num}: {_report(error, run_dir)}") from error
        status = "refused" if isinstance(error, ConfigError) else "failed"
        result = jobs.write_end(status, _report(error, run_dir), settings, run_dir)
    finally:
        table.write_summary(multirun_dir(settings))
    val_loss = table.val_loss_of(result)
    if result["status"] != "completed":
        val_loss = None
        say(f"job {settings.job.num}: {result['error']}")
    is_search = settings.runtime.choices.get("hydra/sweeper", "basic") != "basic"
    if val_loss is not None or not is_search:
        return val_loss
    # the worst value, since a sweeper learns from it, and would end the search at an error
    maximizes = "MAXIMIZE" in str(settings.sweeper.get("direction")).upper()
    return -math.inf if maximizes else math.inf


def _checked_run(cfg: DictConfig, settings: Any, run_dir: Path) -> dict[str, Any]:
    try:
        refuse_merged(settings)
        checked = validate(cfg)
        devices = checked.trainer.devices if isinstance(checked, RunConfig) else 1
        if is_rank():  # otherwise the other ranks are started here
            check_num_processes(devices)
    except ConfigError as error:
        if rank() == 0 and not holds_record(run_dir):
            jobs.write_end("refused", hidden_in_message(str(error)), settings, run_dir)
        raise
    with ranks.other_ranks(devices, settings, run_dir):
        if rank() == 0:  # the first line, before imports that take seconds
            is_below = run_dir.is_relative_to(Path.cwd())
            log.info("run folder: %s", run_dir.relative_to(Path.cwd()) if is_below else run_dir)
            if is_below and not run_dir.resolve().is_relative_to(Path.cwd().resolve()):
                log.info("the run folder is behind a link: %s", run_dir.resolve())
        with imports_frozen():
            command = command_of(cfg)
        return command(cfg, run_dir, checked, current_state().reserved)


def _refuse_parallel_benchmarks(cfg: DictConfig, settings: Any) -> None:
    launcher = settings.runtime.choices.get("hydra/launcher", "basic")
    for key, node in (cfg.get("callbacks") or {}).items():
        if launcher != "basic" and node and measures_times(node.get("name")):
            raise ConfigError(
                f"callbacks.{key} measures times, which jobs in parallel on one device would "
                "falsify: leave hydra/launcher at basic."
            )


def _report(error: Exception, run_dir: Path) -> str:
    """Returns the sentence for an error, and writes its traceback to the run's log file."""
    if isinstance(error, ConfigError | RunError):
        _write_to_log_file(hidden_in_message(str(error)), None)
        return hidden_in_message(str(error))
    message = hidden_in_message(first_line(error))
    if _write_to_log_file("the run failed", error):
        return f"{message} (traceback in {run_dir / 'xftrain.log'})"
    show_traceback(error)
    return message


def _write_to_log_file(message: str, error: Exception | None) -> bool:
    """Writes to the log file only, not to the console; returns False if there is no log file."""
    info = (type(error), error, error.__traceback__) if error else None
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, message, (), info)
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    for handler in files:
        handler.handle(record)
    return bool(files)
