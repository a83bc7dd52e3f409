"""Runs each job of a sweep in a separate process, and keeps a table of all jobs up to date.

A job that fails or is killed does not end the sweep. Every command imports this module, so it must
not import torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from xftrain.commands.sweep_data import multirun_dir, restore_digests
from xftrain.config.overrides import literal, override_strings, quoted
from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError, Stopped, SweepRefused
from xftrain.folders.links import refuse_links
from xftrain.folders.run_folder import RunFolder, holds_run
from xftrain.multirun.command_state import current_state
from xftrain.multirun.completed_jobs import check_jobs, completed, may_share_folders
from xftrain.multirun.former_sweep import former_files, set_former_sweep_aside
from xftrain.multirun.job_config import refuse_other_config, write_job_config
from xftrain.multirun.record import MODE_KEYS, is_resumed, make_record, without_keys, write_record
from xftrain.multirun.table import clear_jobs, read_result
from xftrain.utils.files import read_plain, write_json
from xftrain.utils.printable import one_line
from xftrain.utils.processes import Process, describe_exit, end_processes
from xftrain.utils.redaction import hidden_throughout

# Environment variable of a job's process: the file for its last message, which the sweep prints.
MESSAGE_FILE_VARIABLE = "XFTRAIN_SWEEP_JOB"
_EXCLUDED_KEYS = "hydra.job.config.override_dirname.exclude_keys"  # not in job folder names
_END_S = 30.0  # time for a job to save and end
_MAX_MESSAGE_BYTES = 1 << 20  # size of a job's last message


class SweepTable(Callback):
    """Prepares the folder of a sweep and records its command there."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the jobs, sets an earlier sweep aside, and writes the record before the first job.

        Raises:
            SweepRefused: a job cannot run, or the folder cannot be written.
        """
        folder = Path(config.hydra.sweep.dir).absolute()
        record = make_record(config)
        _name_by_changes(config)
        try:
            if folder.is_dir():
                refuse_links(folder, "hydra.sweep.dir", may_hold_data=False)
            if is_resumed() or may_share_folders(config) or former_files(folder):
                check_jobs(config, folder)
            if is_resumed():
                restore_digests(folder)
            else:
                set_former_sweep_aside(folder)
            _use_new_submitit_folder(config, folder)
            clear_jobs(folder)
            write_record(record, folder)
        except ConfigError as error:
            raise SweepRefused(str(error)) from error
        except (OSError, ValueError) as error:  # a name with a NUL
            raise SweepRefused(
                f"hydra.sweep.dir={one_line(str(folder))} cannot be written ({error}): choose "
                "another folder."
            ) from error
        current_state().sweep.folder = folder


def _use_new_submitit_folder(config: DictConfig, folder: Path) -> None:
    """Sets a new folder for submitit if there is an old one, whose results it would unpickle."""
    launcher = config.hydra.launcher
    if "submitit_folder" in launcher and (folder / ".submitit").exists():
        with flag_override(config, ["readonly", "struct"], False):
            launcher.submitit_folder = f"${{hydra.sweep.dir}}/.submitit/{token_hex(8)}/%j"


def _name_by_changes(config: DictConfig) -> None:
    """Excludes the overrides that all jobs share from folder names, which TensorBoard displays.

    Hydra passes this setting to each job, which thus knows its own overrides.
    """
    typed = OverridesParser.create().parse_overrides(override_strings(config.hydra.overrides.task))
    shared = [o.key_or_group for o in typed if not o.is_sweep_override()]
    left_out = [*config.hydra.job.config.override_dirname.exclude_keys, *shared]
    listed = ",".join(map(quoted, left_out))
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.overrides.hydra.append(f"{_EXCLUDED_KEYS}=[{listed}]")


def run_job(
    settings: Any, run_dir: Path, description: Mapping[str, Any], *, is_new: bool = False
) -> dict[str, Any]:
    """Runs one job as a separate command, and returns the content of its `result.json`.

    If the process crashes or is killed before it writes the file, the file is written here.

    Args:
        settings: Hydra's own configuration of the job.
        run_dir: the job's folder.
        description: see `job_config.job_description`.
        is_new: whether the job resumes no checkpoint, so that a former run's files are set aside.

    Raises:
        SweepRefused: the job was completed with another configuration.
    """
    overrides = override_strings(settings.overrides.task)
    if is_resumed() and (done := completed(run_dir, overrides)):
        refuse_other_config(description, run_dir)
        return done
    if is_new and holds_run(run_dir):
        RunFolder(run_dir).start_new_run()
    elif is_new:
        RunFolder(run_dir).move_foreign_files()
    (run_dir / "result.json").unlink(missing_ok=True)
    write_job_config(description, run_dir)
    message_file = run_dir / ".job_said"
    message_file.unlink(missing_ok=True)
    process = start(job_command(settings, run_dir, overrides), settings.runtime.cwd, message_file)
    try:
        code = process.wait()
    except BaseException as error:
        # the job may still save a checkpoint; the terminal sends Ctrl-C to it as well
        patience_s = _END_S if isinstance(error, KeyboardInterrupt) else 0.0
        number = error.number if isinstance(error, Stopped) else signal.SIGTERM
        end_processes([process], patience_s=patience_s, wait_s=_END_S, number=number)
        raise
    result = read_result(run_dir)
    if result is None:
        message = _read_message(message_file) or f"{describe_exit(code)} and left no result"
        result = write_end("crashed", message, settings, run_dir)
    message_file.unlink(missing_ok=True)
    return result


def _read_message(message_file: Path) -> str:
    """The last message of a job; empty if there is none."""
    try:
        return read_plain(message_file, _MAX_MESSAGE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def write_end(status: str, error: str, settings: Any, run_dir: Path) -> dict[str, Any]:
    """Writes the `result.json` of a run that ended before it could write the file itself."""
    result = {
        "status": status,
        "error": error,
        "overrides": override_strings(settings.overrides.task),
        "run_dir": str(run_dir),
    }
    write_json(hidden_throughout(result), run_dir / "result.json")
    return result


def start(command: Sequence[str], cwd: str, message_file: Path) -> Process:
    """Starts the process of a job, which writes its last message to a file."""
    environment = {**os.environ, MESSAGE_FILE_VARIABLE: str(message_file.absolute())}
    return subprocess.Popen(command, cwd=cwd, env=environment)


def job_command(settings: Any, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of one job."""
    flags = ["--config-name", str(settings.job.config_name)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != conf_dir():
            flags += ["--config-path", source.path]
    own = without_keys(settings.overrides.hydra, (*MODE_KEYS, "hydra.sweep", "hydra.launcher"))
    hydra_overrides = [
        f"hydra.run.dir={literal(run_dir.absolute())}",
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
    ]
    if not OmegaConf.is_missing(settings.job, "num"):  # a job of a sweep
        hydra_overrides += [
            f"hydra.sweep.dir={literal(multirun_dir(settings))}",
            f"hydra.job.num={settings.job.num}",
            f"hydra.job.id={literal(str(settings.job.id))}",
        ]
    return [sys.executable, "-m", "xftrain", *flags, *overrides, *own, *hydra_overrides]
