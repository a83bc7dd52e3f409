"""The command line: one sentence and an exit code for every way that a command can end.

0 done, 1 the run failed, 2 the configuration is wrong, 75 stopped by SIGUSR1 or SIGUSR2,
129 by SIGHUP, 130 interrupted, 143 stopped by SIGTERM, 152 by SIGXCPU.
"""

from __future__ import annotations

import errno
import gc
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

from xftrain import __version__, ranks, search_path, sweep_end, sweep_record, sweep_table, sweeps
from xftrain.arguments import normalised
from xftrain.commands import Command, command_of
from xftrain.completed_jobs import completed
from xftrain.completion import safe_completion
from xftrain.composition_errors import sentence
from xftrain.config import COMPOSITION_ERRORS, validate
from xftrain.config_checks import refuse_other_ranks
from xftrain.config_schema import schemas_of_no_option
from xftrain.console import protect_handlers, safe_streams, say, show_traceback
from xftrain.errors import ConfigError, RunError, Stopped, SweepRefused, first_line
from xftrain.field_values import values_of
from xftrain.files import replace_text
from xftrain.folder_hooks import leave_folders
from xftrain.help_text import explained
from xftrain.hydra_errors import errors_raised
from xftrain.hydra_files import hide_in_files
from xftrain.job_config import described
from xftrain.merged_options import refuse_merged
from xftrain.overrides import all_groups, as_typed
from xftrain.printable import short_line
from xftrain.processes import (
    check_rank_variables,
    die_with_parent,
    drop_empty_variables,
    drop_relative_base_folders,
    is_rank,
    rank,
    stops_raised,
)
from xftrain.redaction import hidden_in_message
from xftrain.registry import conf_dir, measures_times
from xftrain.run_config import RunConfig
from xftrain.run_folder import holds_record
from xftrain.sweep_data import multirun_dir
from xftrain.untrusted_folder import protect_libraries, protected

log = logging.getLogger(__name__)

_last_words: Path | None = None  # of a sweep's job: the file for its sentence
# Flags of commands whose output is all there is of them.
_PRINTING = re.compile(  # as Python's argparse takes them, also shortened
    r"--(v|he|hy|cf|i).*|-[hi].*|-c(job|hydra|all)?"
).fullmatch


class JobFailed(Exception):
    """A job's end as the sentence to print and the exit code; it travels between processes."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)
        self.sentence, self.code = sentence, code


def main() -> int:
    """Runs the command in `sys.argv` and returns its exit code."""
    is_printing = any(map(_PRINTING, sys.argv[1:]))
    with safe_streams(is_printing=is_printing) as lost:
        code = _run_command()
    return code or int(is_printing and bool(lost))


def _run_command() -> int:
    global _last_words
    protect_libraries()
    words = os.environ.pop(sweeps.JOB, None)  # not for the commands that this one may start
    _last_words = Path(words) if words else None
    if words:
        die_with_parent(signal.SIGTERM)
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"xftrain {__version__}\n")
        return 0
    try:
        search_path.find_own_classes()
        drop_empty_variables()
        for said in drop_relative_base_folders():
            say(f"warning: {said}")
        check_rank_variables()
        with (
            protected(),
            errors_raised(),
            stops_raised(signal.SIGUSR1, signal.SIGUSR2),
        ):
            sys.argv[1:] = normalised(sys.argv[1:])  # Lightning reads it again
            decorate = hydra.main(
                version_base="1.3", config_path=str(conf_dir()), config_name="train"
            )
            with (
                safe_completion(all_groups, values_of),
                explained(schemas_of_no_option),
                ranks.following(is_ours=bool(words)) as told,
            ):
                sys.argv += told
                decorate(_job)()
        return _end_of_sweep()
    except JobFailed as failure:
        return _end(failure.sentence, failure.code)
    except (ConfigError, SweepRefused) as error:
        return _end(str(error), 2)
    except COMPOSITION_ERRORS as error:
        return _end(sentence(error, sys.argv[1:]), 2)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # as of an option that a variable holds
            return _end(f"no file can have that name ({error}): use a shorter option or value.", 2)
        return _end(f"the run folder cannot be made ({error}): choose another hydra.run.dir.", 1)
    except KeyboardInterrupt:
        return _end("interrupted.", 130)
    except Stopped as stop:
        return _end(f"{stop}.", int(stop.code or 1))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # how Lightning answers Ctrl-C
            return _end("interrupted.", 130)
        if stop.code is None:  # and SIGTERM
            return _end("stopped by SIGTERM.", 143)
        if isinstance(stop.code, str):  # Python would print it as it is
            return _end(stop.code, 1)
        raise
    except Exception as error:
        if sweeps.SweepTable.folder is None:
            show_traceback(error)
            return 1
        return _end_of_sweep(error)
    finally:
        sweeps.SweepTable.folder = None
        leave_folders()


def _job(cfg: DictConfig) -> float | None:
    """One job: the whole of a run, one of many in a sweep. Returns what a sweeper minimizes."""
    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    search_path.find_own_classes()  # also where a launcher has started this process
    protect_libraries()
    protect_handlers()
    if settings.output_subdir is not None:
        hide_in_files(run_dir / settings.output_subdir)
    if settings.mode == RunMode.MULTIRUN:
        return _one_of_many(cfg, settings, run_dir)
    try:
        result = _checked_run(cfg, settings, run_dir)
    except Exception as error:
        if rank() and ranks.is_of_another(error):  # which has an error of its own to show
            said = f"rank {rank()} lost the other ranks ({first_line(error)})."
        else:
            said = _report(error, run_dir)
        raise JobFailed(said, 2 if isinstance(error, ConfigError) else 1) from error
    metrics: dict[str, float] = result.get("metrics", {})
    return metrics.get("val/loss")


def _one_of_many(cfg: DictConfig, settings: Any, run_dir: Path) -> float | None:
    """A job of a sweep: whatever becomes of it, the others go on."""
    run_dir = Path(settings.runtime.cwd) / run_dir
    sweep_table.note_job(multirun_dir(settings), settings.job.num, run_dir)
    try:
        with stops_raised():
            _refuse_side_by_side(cfg, settings)
            refuse_merged(settings)
            description = described(cfg, validate(cfg))
            is_new = cfg.get("ckpt") is None
            result = sweeps.run_job(settings, run_dir, description, is_new=is_new)
    except Exception as error:
        if sweep_record.is_resumed() and completed(run_dir, as_typed(settings.overrides.task)):
            raise SweepRefused(f"job {settings.job.num}: {_report(error, run_dir)}") from error
        status = "refused" if isinstance(error, ConfigError) else "failed"
        result = sweeps.write_end(status, _report(error, run_dir), settings, run_dir)
    finally:
        sweep_table.write_summary(multirun_dir(settings))
    val_loss = sweep_table.val_loss_of(result)
    if result["status"] != "completed":
        val_loss = None
        say(f"job {settings.job.num}: {result['error']}")
    is_search = settings.runtime.choices.get("hydra/sweeper", "basic") != "basic"
    if val_loss is not None or not is_search:
        return val_loss
    # the worst there is, for a sweeper that learns from it and would end at an error
    maximizes = "MAXIMIZE" in str(settings.sweeper.get("direction")).upper()
    return -math.inf if maximizes else math.inf


def _checked_run(cfg: DictConfig, settings: Any, run_dir: Path) -> dict[str, Any]:
    try:
        refuse_merged(settings)
        checked = validate(cfg)
        devices = checked.trainer.devices if isinstance(checked, RunConfig) else 1
        if is_rank():  # else the others are started here
            refuse_other_ranks(devices)
    except ConfigError as error:
        if rank() == 0 and not holds_record(run_dir):
            sweeps.write_end("refused", hidden_in_message(str(error)), settings, run_dir)
        raise
    with ranks.started(devices, settings, run_dir):
        if rank() == 0:  # a first line, before seconds of imports
            is_below = run_dir.is_relative_to(Path.cwd())
            log.info("run folder: %s", run_dir.relative_to(Path.cwd()) if is_below else run_dir)
            if is_below and not run_dir.resolve().is_relative_to(Path.cwd().resolve()):
                log.info("which a link leads to: %s", run_dir.resolve())
        return _imported(cfg)(cfg, run_dir, checked)


def _imported(cfg: DictConfig) -> Command:
    """The command, once what it needs is imported.

    From then on Python's searches for garbage leave out what lives by then, since it stays: going
    through it took 2 of a short run's 6 s, most of them at the end of the process.
    """
    if "torch" in sys.modules:  # by a command before this one, whose garbage would stay as well
        return command_of(cfg)
    gc.disable()
    try:
        return command_of(cfg)
    finally:
        gc.freeze()
        gc.enable()


def _refuse_side_by_side(cfg: DictConfig, settings: Any) -> None:
    launcher = settings.runtime.choices.get("hydra/launcher", "basic")
    for key, node in (cfg.get("callbacks") or {}).items():
        if launcher != "basic" and node and measures_times(node.get("name")):
            raise ConfigError(
                f"callbacks.{key} measures times, which jobs side by side on one device falsify: "
                "leave hydra/launcher at basic."
            )


def _end_of_sweep(lost: Exception | None = None) -> int:
    """1 if a job of a sweep failed or was lost; 0 after a single run."""
    said = sweep_end.finish(lost)
    return 0 if said is None else _end(said, 1)


def _report(error: Exception, run_dir: Path) -> str:
    """The sentence for an error; what it leaves out goes to the run's log file."""
    if isinstance(error, ConfigError | RunError):
        _to_log_file(hidden_in_message(str(error)), None)
        return hidden_in_message(str(error))
    said = hidden_in_message(first_line(error))
    if _to_log_file("the run failed", error):
        return f"{said} (traceback in {run_dir / 'xftrain.log'})"
    show_traceback(error)
    return said


def _to_log_file(message: str, error: Exception | None) -> bool:
    """Writes to the log file alone, as the console gets a sentence; False if there is none."""
    info = (type(error), error, error.__traceback__) if error else None
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, message, (), info)
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    for handler in files:
        handler.handle(record)
    return bool(files)


def _end(said: str, code: int) -> int:
    if _last_words is None:
        say(said)
    else:  # of a job, the sweep says it
        replace_text(_last_words, short_line(hidden_in_message(said)))
    return code
