"""A sweep: each job in a process of its own, and one table of them all that is always up to date.

Nothing that ends a job ends the sweep. Imports no torch: every command imports this.
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

from xftrain.commands.sweep_data import multirun_dir, recall_data
from xftrain.config.overrides import literal, override_strings, quoted
from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError, Stopped, SweepRefused
from xftrain.folders.links import refuse_links
from xftrain.folders.run_folder import RunFolder, holds_run
from xftrain.multirun.completed_jobs import check_jobs, completed, may_share_folders
from xftrain.multirun.former_sweep import former_files, set_former_sweep_aside
from xftrain.multirun.job_config import refuse_other_config, write_job_config
from xftrain.multirun.record import MODE, is_resumed, record_of, without_keys, write_record
from xftrain.multirun.sweep import current_sweep
from xftrain.multirun.table import forget_jobs, read_result
from xftrain.utils.files import read_plain, write_json
from xftrain.utils.printable import one_line
from xftrain.utils.processes import Process, describe_exit, end_processes
from xftrain.utils.redaction import hidden_throughout

# In a job's process: the file for its last sentence, which the sweep says.
JOB = "XFTRAIN_SWEEP_JOB"
_SHARED = "hydra.job.config.override_dirname.exclude_keys"  # of the names of jobs
_END_S = 30.0  # for a job to save and end
_WORDS_BYTES = 1 << 20  # of a job's last sentence


class SweepTable(Callback):
    """Notes where the sweep of this process is and what it runs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job."""
        folder = Path(config.hydra.sweep.dir).absolute()
        record = record_of(config)
        _name_by_changes(config)
        try:
            if folder.is_dir():
                refuse_links(folder, "hydra.sweep.dir", may_hold_data=False)
            if is_resumed() or may_share_folders(config) or former_files(folder):
                check_jobs(config, folder)
            if is_resumed():
                recall_data(folder)
            else:
                set_former_sweep_aside(folder)
            _leave_old_submissions(config, folder)
            forget_jobs(folder)
            write_record(record, folder)
        except ConfigError as error:
            raise SweepRefused(str(error)) from error
        except (OSError, ValueError) as error:  # a name with a NUL
            raise SweepRefused(
                f"hydra.sweep.dir={one_line(str(folder))} cannot be written ({error}): choose "
                "another folder."
            ) from error
        current_sweep().folder = folder


def _leave_old_submissions(config: DictConfig, folder: Path) -> None:
    """Give submitit a new folder where it has left one, whose results it would unpickle."""
    launcher = config.hydra.launcher
    if "submitit_folder" in launcher and (folder / ".submitit").exists():
        with flag_override(config, ["readonly", "struct"], False):
            launcher.submitit_folder = f"${{hydra.sweep.dir}}/.submitit/{token_hex(8)}/%j"


def _name_by_changes(config: DictConfig) -> None:
    """Leaves what all jobs share out of the names of their folders: TensorBoard has little room.

    Each job gets this with the other overrides of Hydra's own, and can tell what makes it special.
    """
    typed = OverridesParser.create().parse_overrides(override_strings(config.hydra.overrides.task))
    shared = [one.key_or_group for one in typed if not one.is_sweep_override()]
    left_out = [*config.hydra.job.config.override_dirname.exclude_keys, *shared]
    listed = ",".join(map(quoted, left_out))
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.overrides.hydra.append(f"{_SHARED}=[{listed}]")


def run_job(
    settings: Any, run_dir: Path, description: Mapping[str, Any], *, is_new: bool = False
) -> dict[str, Any]:
    """Runs one job as a command of its own, and returns what its `result.json` holds.

    A process that leaves none, since it was killed or crashed, gets one that says so.

    Args:
        settings: Hydra's own configuration of the job.
        run_dir: the job's folder.
        description: see `job_config.described`.
        is_new: whether it resumes no checkpoint, so that it has no use for a former run's files.

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
    last_words = run_dir / ".job_said"
    last_words.unlink(missing_ok=True)
    process = start(job_command(settings, run_dir, overrides), settings.runtime.cwd, last_words)
    try:
        code = process.wait()
    except BaseException as error:
        # a job may still save a checkpoint; of Ctrl-C it knows by itself
        patience_s = _END_S if isinstance(error, KeyboardInterrupt) else 0.0
        number = error.number if isinstance(error, Stopped) else signal.SIGTERM
        end_processes([process], patience_s=patience_s, wait_s=_END_S, number=number)
        raise
    result = read_result(run_dir)
    if result is None:
        said = _said(last_words) or f"{describe_exit(code)} and left no result"
        result = write_end("crashed", said, settings, run_dir)
    last_words.unlink(missing_ok=True)
    return result


def _said(last_words: Path) -> str:
    """The last sentence of a job; empty where it left none."""
    try:
        return read_plain(last_words, _WORDS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def write_end(status: str, error: str, settings: Any, run_dir: Path) -> dict[str, Any]:
    """The `result.json` of a run that ended before it could write its own."""
    result = {
        "status": status,
        "error": error,
        "overrides": override_strings(settings.overrides.task),
        "run_dir": str(run_dir),
    }
    write_json(hidden_throughout(result), run_dir / "result.json")
    return result


def start(command: Sequence[str], cwd: str, last_words: Path) -> Process:
    """Starts the process of a job, which leaves its last sentence in a file."""
    environment = {**os.environ, JOB: str(last_words.absolute())}
    return subprocess.Popen(command, cwd=cwd, env=environment)


def job_command(settings: Any, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of one job."""
    flags = ["--config-name", str(settings.job.config_name)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != conf_dir():
            flags += ["--config-path", source.path]
    own = without_keys(settings.overrides.hydra, (*MODE, "hydra.sweep", "hydra.launcher"))
    place = [
        f"hydra.run.dir={literal(run_dir.absolute())}",
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
    ]
    if not OmegaConf.is_missing(settings.job, "num"):  # one of a sweep
        place += [
            f"hydra.sweep.dir={literal(multirun_dir(settings))}",
            f"hydra.job.num={settings.job.num}",
            f"hydra.job.id={literal(str(settings.job.id))}",
        ]
    return [sys.executable, "-m", "xftrain", *flags, *overrides, *own, *place]
