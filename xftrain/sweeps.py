"""A sweep: each job in a process of its own, and one table of them all that is always up to date.

Nothing that ends a job ends the sweep. Imports no torch: every command imports this.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from xftrain import markdown
from xftrain.errors import ConfigError
from xftrain.files import replace_text
from xftrain.overrides import as_typed
from xftrain.processes import cause_of_death
from xftrain.registry import conf_dir

RESUME = "resume_sweep"  # the override that goes on with a sweep
# In a job's process: the file for its last sentence, which the sweep says.
JOB = "XFTRAIN_SWEEP_JOB"
_RESUMED = "XFTRAIN_RESUMED_SWEEP"  # in the sweep's processes, whoever starts them
_RECORD, _JOBS = ".sweep.json", ".jobs"  # what a sweep runs; a file for each of its jobs
_OWN = ("command-line", "hydra.searchpath in main", "hydra.searchpath in command-line")
# Overrides that are about the sweep rather than about a job, or about what is run.
_MODE = ("hydra.mode", "hydra.run", "hydra.sweep.dir", "hydra.output_subdir")
_END_S = 30.0  # for a job to save and end
_FIGURES = {  # of a job, by column: where result.json has them
    "val/loss": ("metrics", "val/loss"),
    "val/accuracy": ("metrics", "val/accuracy"),
    "tokens_per_s": ("tokens_per_s",),
    "peak_memory_mib": ("peak_memory_mib",),
    "wall_s": ("wall_s",),
}

Row = dict[str, Any]


class SweepTable(Callback):
    """Notes where the sweep of this process is and what it runs."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job."""
        folder = Path(config.hydra.sweep.dir).absolute()
        (folder / _JOBS).mkdir(parents=True, exist_ok=True)
        for path in (folder / _JOBS).iterdir():  # of an earlier sweep in this folder
            path.unlink()
        hydra = config.hydra
        record = {
            "config_name": hydra.job.config_name,
            "config_dirs": [s.path for s in hydra.runtime.config_sources if s.provider in _OWN],
            "overrides": as_typed(hydra.overrides.task) + _kept(hydra.overrides.hydra, _MODE),
        }
        write_json(record, folder / _RECORD)
        SweepTable.folder = folder


def folder_of(settings: Any) -> Path:
    """The folder of the sweep that a job belongs to."""
    return Path(settings.runtime.cwd) / str(settings.sweep.dir)


def note_job(settings: Any, run_dir: Path) -> None:
    """Lists a job of the sweep, with the number that it has there."""
    entry = {"job": int(settings.job.num), "run_dir": str(run_dir.absolute())}
    write_json(entry, folder_of(settings) / _JOBS / f"{settings.job.num}.json")


def run_job(settings: Any, run_dir: Path) -> dict[str, Any]:
    """Runs one job as a command of its own, and returns what its `result.json` holds.

    A process that leaves none, since it was killed or crashed, gets one that says so.

    Args:
        settings: Hydra's own configuration of the job.
        run_dir: the job's folder.
    """
    overrides = as_typed(settings.overrides.task)
    if os.environ.get(_RESUMED) and (done := _completed(run_dir, overrides)):
        return done
    (run_dir / "result.json").unlink(missing_ok=True)
    last_words = run_dir / ".job_said"
    last_words.unlink(missing_ok=True)
    process = start(job_command(settings, run_dir, overrides), settings.runtime.cwd, last_words)
    try:
        code = process.wait()
    except BaseException as error:
        _end(process, is_told=isinstance(error, KeyboardInterrupt))
        raise
    result = read_result(run_dir)
    if result is None:
        said = last_words.read_text(encoding="utf-8") if last_words.is_file() else ""
        said = said or f"{cause_of_death(code)} and left no result"
        result = write_end("crashed", said, settings, run_dir)
    last_words.unlink(missing_ok=True)
    return result


def write_end(status: str, error: str, settings: Any, run_dir: Path) -> dict[str, Any]:
    """The `result.json` of a run that ended before it could write its own."""
    result = {
        "status": status,
        "error": error,
        "overrides": as_typed(settings.overrides.task),
        "run_dir": str(run_dir),
    }
    write_json(result, run_dir / "result.json")
    return result


def start(command: Sequence[str], cwd: str, last_words: Path) -> subprocess.Popen[bytes]:
    """Starts the process of a job, which leaves its last sentence in a file."""
    environment = {**os.environ, JOB: str(last_words.absolute())}
    return subprocess.Popen(command, cwd=cwd, env=environment)


def _end(process: subprocess.Popen[bytes], *, is_told: bool) -> None:
    """Ends a job, which may still save a checkpoint; of Ctrl-C it knows by itself."""
    for stop in ([process.poll] if is_told else []) + [process.terminate, process.kill]:
        stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
            return


def job_command(settings: Any, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of one job."""
    flags = ["--config-name", str(settings.job.config_name)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != conf_dir():
            flags += ["--config-path", source.path]
    own = _kept(settings.overrides.hydra, (*_MODE, "hydra.sweep", "hydra.launcher"))
    place = [
        f"hydra.run.dir={_quoted(run_dir.absolute())}",
        f"hydra.sweep.dir={_quoted(folder_of(settings))}",
        f"hydra.job.num={settings.job.num}",
        f"hydra.job.id={_quoted(str(settings.job.id))}",
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
    ]
    return [sys.executable, "-m", "xftrain", *flags, *overrides, *own, *place]


def resumed(overrides: Sequence[str], *, has_flags: bool) -> list[str]:
    """The arguments with `resume_sweep=<folder>` worked in; the overrides where it is not there.

    Args:
        overrides: what was typed.
        has_flags: whether flags were typed too, as `--config-name`.

    Raises:
        ConfigError: there is no such sweep, or its command has to be typed again.
    """
    os.environ.pop(_RESUMED, None)
    named = [override for override in overrides if override.startswith(f"{RESUME}=")]
    if not named:
        return list(overrides)
    folder = Path(named[-1].partition("=")[2]).expanduser()
    others = [override for override in overrides if not override.startswith(f"{RESUME}=")]
    record = _read(folder / _RECORD)
    if record is None:
        raise ConfigError(f"{RESUME} must be the folder of a sweep, got {str(folder)!r}.")
    arguments = ["--multirun", *others]
    if not others and not has_flags:
        typed = [str(override) for override in record["overrides"]]
        # a folder may come from anyone; what names code of its own has to be typed
        if record["config_dirs"] or any("_target_" in override for override in typed):
            raise ConfigError(
                f"the sweep in {str(folder)!r} used options of its own folder or _target_: repeat "
                f"its whole command and add {RESUME}={folder}."
            )
        arguments = ["--multirun", "--config-name", str(record["config_name"]), *typed]
    os.environ[_RESUMED] = "1"
    return [*arguments, f"hydra.sweep.dir={_quoted(folder)}"]


def _kept(overrides: Any, left_out: tuple[str, ...]) -> list[str]:
    """Overrides of Hydra's own configuration but those that begin so."""
    named = [(o, o.lstrip("+~").replace("/", ".")) for o in as_typed(overrides)]
    return [override for override, key in named if not key.startswith(left_out)]


def _quoted(path: Path | str) -> str:
    """A value as Hydra's grammar takes it, whatever characters it has."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def write_summary(folder: Path) -> list[Row]:
    """`summary.csv` and `summary.md` of a sweep's folder, from the results that are there."""
    rows = read_rows(folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    replace_text(folder / "summary.csv", _csv(rows, columns))
    replace_text(folder / "summary.md", table(rows) + "\n")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """A row for each job of the sweep that has a result, in the jobs' order."""
    rows: list[Row] = []
    for path in (folder / _JOBS).glob("*.json"):
        entry = _read(path)
        result = read_result(Path(entry["run_dir"])) if entry else None
        if entry is None or result is None:
            continue
        row: Row = {"job": entry["job"], "status": result["status"]}
        for override in result["overrides"]:
            key, _, value = override.partition("=")
            row[key.lstrip("+").replace("/", ".")] = value
        for column, place in _FIGURES.items():
            row[column] = _at(result, place)
        row["run_dir"] = entry["run_dir"]
        row["error"] = " ".join(str(result.get("error") or "").split())
        rows.append(row)
    return sorted(rows, key=lambda row: row["job"])


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: what differs between the jobs, their figures, and why some failed."""
    keys = [key for row in rows for key in row]
    known = {"job", "status", *_FIGURES, "run_dir", "error"}
    overridden = [k for k in dict.fromkeys(keys) if k not in known]
    changed = [k for k in overridden if len({row.get(k) for row in rows}) > 1] or overridden
    columns = ["job", "status", *changed, *_FIGURES, "run_dir"]
    lines = [[_shown(row.get(column)) for column in columns] for row in rows]
    made = [markdown.table(columns, lines, left=True)]
    made += [f"- job {row['job']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(made)


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What `result.json` holds; None where there is none, or half of one."""
    return _read(run_dir / "result.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return found


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """The file, whole or absent."""
    replace_text(path, json.dumps(result, indent=2) + "\n")


def _completed(run_dir: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    result = read_result(run_dir)
    if result is None or result["status"] != "completed":
        return None
    return result if result["overrides"] == list(overrides) else None


def _at(result: Mapping[str, Any], place: Sequence[str]) -> Any:
    value: Any = result
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
