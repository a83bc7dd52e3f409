"""The record of a run in `result.json`, and its last lines on the console."""

from __future__ import annotations

import errno
import json
import logging
import math
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from xftrain.commands.neighboring_runs import dotted
from xftrain.config.overrides import literal, override_strings
from xftrain.errors import ConfigError, RunError, Stopped
from xftrain.folders.links import refuse_links
from xftrain.folders.run_folder import RunFolder
from xftrain.utils.files import make_new_folder, replace_text
from xftrain.utils.processes import rank
from xftrain.utils.redaction import hidden_in_message, hidden_throughout
from xftrain.version import __version__, installed_version

log = logging.getLogger(__name__)

# no space, quota exceeded, file too large, input/output error, read-only file system
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_PACKAGES = ("xformers", "lightning", "hydra-core", "omegaconf")


def status_after(error: BaseException) -> str:
    """The status after an error: `refused`, `stopped` by a signal, or `failed`."""
    if isinstance(error, ConfigError):
        return "refused"
    return "stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"


def run_dir_for(run_dir: Path | None) -> Path:
    """The run folder, as a relative path if it is below the working directory.

    If none is given, a folder named after the time is made at once, since another run may start in
    the same second.
    """
    if run_dir is None:
        run_dir = Path("outputs", *datetime.now().strftime("%Y-%m-%d %H-%M-%S").split())
        run_dir = make_new_folder(run_dir) if rank() == 0 else run_dir
    return run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir


@contextmanager
def recorded(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Yields the record of a run to be filled in, and writes `result.json` however the run ends.

    A run that fails before it begins to train keeps the record of an earlier run in the folder,
    whose files are still there.

    Args:
        folder: the run folder, which is locked meanwhile.

    Raises:
        ConfigError: the folder has a link that leads out of it, or another run is using it.
        RunError: the disk is full; this replaces the system's own error.
    """
    if not folder.is_writer:
        yield empty_result(folder.path)
        return
    refuse_links(folder.path, "hydra.run.dir")
    with folder.reserved.locked(folder.path, "hydra.run.dir"):
        yield from _recorded(folder)


def _recorded(folder: RunFolder) -> Iterator[dict[str, Any]]:
    started, run_dir = time.perf_counter(), folder.path
    result = empty_result(run_dir)
    failure: BaseException | None = None
    try:
        yield result
        result["status"] = "completed"
    except BaseException as error:
        failure = error
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            failure = RunError(
                f"a file in {run_dir} could not be written ({error}): free space on its disk or "
                "choose another hydra.run.dir."
            )
            failure.__cause__ = error
        result["status"] = status_after(failure)
        result["error"] = hidden_in_message(_error_text(failure))
    result["wall_s"] = round(time.perf_counter() - started, 3)
    try:
        if not folder.keeps_record(result["status"]):
            write_result(result, run_dir)
    except (RunError, OSError) as unwritten:
        failure = failure or unwritten  # the error that ended the run takes precedence
    if failure is not None:
        if result["status"] == "stopped":
            _log_resume_command(result, failure)
        raise failure


def _log_resume_command(result: Mapping[str, Any], failure: BaseException) -> None:
    """Logs the checkpoint of a stopped run and the command that resumes it."""
    ckpt = Path(result["run_dir"], "checkpoints", "last.ckpt")
    if not ckpt.is_file():
        return
    if result["steps"]:  # otherwise the run was stopped before its first step
        log.info("%s at step %d, saved in %s", _error_text(failure), result["steps"], ckpt)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        folder = f"hydra.run.dir={_plain_or_quoted(result['run_dir'])}"
        replaced = ("hydra.run.dir=", "ckpt=")
        typed = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(replaced)]
        log.info("resume with: python -m xftrain %s", shlex.join([*typed, folder, "ckpt=auto"]))


def _plain_or_quoted(path: str) -> str:
    """Writes a path as an override's value, with quotes only if it needs them."""
    return path if re.fullmatch(r"[\w./-]+", path) else literal(path)


def _error_text(error: BaseException) -> str:
    """The text of this package's errors, or the type and text of any other error."""
    if isinstance(error, ConfigError | RunError | Stopped):
        return str(error)
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        return "interrupted"  # Lightning exits like this after a second Ctrl-C
    return f"{type(error).__name__}: {error}"


def write_failed_result(result: dict[str, Any], run_dir: Path, error: str) -> None:
    """Writes the record of a run whose process is about to end itself."""
    with suppress(RunError):
        write_result({**result, "status": "failed", "error": error}, run_dir)


def empty_result(run_dir: Path) -> dict[str, Any]:
    """The initial record of a run."""
    return {
        "status": "running",
        "error": None,
        "stop_reason": None,
        "kernel": None,
        "data_digest": None,
        "overrides": _overrides(),
        "metrics": {},
        "tokens_per_s": None,
        "peak_memory_mib": None,
        "predicted_peak_mib": None,
        "num_parameters": None,
        "wall_s": None,
        "steps": 0,
        "run_dir": str(run_dir),
        "versions": _versions(),
        "device": None,
    }


def _overrides() -> list[str]:
    if not HydraConfig.initialized():
        return []
    return override_strings(HydraConfig.get().overrides.task)


def changed_overrides() -> dict[str, str]:
    """This run's overrides by dotted key, without those that all jobs of its multirun share."""
    if not HydraConfig.initialized():
        return {}
    shared = HydraConfig.get().job.config.override_dirname.exclude_keys
    typed = [
        override
        for override in _overrides()
        if override.lstrip("+~").partition("=")[0] not in shared
    ]
    return dict(map(dotted, typed))


def is_multirun_job() -> bool:
    """Whether this run is a job of a multirun."""
    if not HydraConfig.initialized():
        return False
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "xftrain": __version__,  # of this code, installed or not
        "torch": torch.__version__,  # includes the build: +cpu, +cu130
        **{package: installed_version(package) for package in _PACKAGES},
    }


def write_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """Writes `result.json` atomically; NaN, which JSON lacks, becomes null.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    plain = hidden_throughout(
        {
            **result,
            "metrics": {name: _json_number(value) for name, value in result["metrics"].items()},
        }
    )
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    try:
        replace_text(run_dir / "result.json", text)
    except OSError as error:
        raise RunError(
            f"{run_dir / 'result.json'} could not be written ({error}): free space on its disk or "
            "choose another hydra.run.dir."
        ) from error


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def log_summary(result: Mapping[str, Any], *, with_tensorboard: bool) -> None:
    """Logs the last lines of a run: metrics, run folder, and the TensorBoard command if any."""
    metrics = result["metrics"]
    parts = []
    if "val/loss" in metrics:  # missing with trainer.limit_val_batches=0
        parts += [f"loss {metrics['val/loss']:.4f}", f"accuracy {metrics['val/accuracy']:.2%}"]
    if "val/bits_per_byte" in metrics:
        parts.append(f"{metrics['val/bits_per_byte']:.3f} bits per byte")
    if "val/bits_per_byte_bigram" in metrics:
        parts.append(f"byte bigram {metrics['val/bits_per_byte_bigram']:.3f}")
    speed = result["tokens_per_s"]
    figures = f", {speed:,.0f} tokens/s" if speed else ""
    figures += f", peak memory {result['peak_memory_mib']:,.0f} MiB"
    log.info("done in %.1f s: %d steps%s", result["wall_s"], result["steps"], figures)
    log.info("validation: %s", ", ".join(parts) or "none, as trainer.limit_val_batches=0")
    log.info("run folder: %s", result["run_dir"])
    folder = Path(result["run_dir"])
    if with_tensorboard:
        shown = folder.parts[0] if _is_below(folder) else str(folder)
        log.info("tensorboard --logdir %s", shlex.quote(shown))


def _is_below(folder: Path) -> bool:
    """Whether a path is relative and has a parent folder, which TensorBoard shows with all runs."""
    return len(folder.parts) > 1 and not folder.is_absolute()
