"""A sweep: each job in a process of its own, and one table of them all that is always up to date.

Nothing that ends a job ends the sweep. Imports no torch: every command imports this.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from xftrain.errors import ConfigError
from xftrain.registry import conf_dir

RESUME = "resume_sweep"  # the override that goes on with a sweep
JOB = "XFTRAIN_SWEEP_JOB"  # set in a job's process, whose sentence the sweep says
_RESUMED = "XFTRAIN_RESUMED_SWEEP"  # set in the sweep's processes, whoever starts them
# Overrides that are about the sweep, its sweeper and launcher rather than about a job.
_SWEEPS_OWN = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra.output_subdir")
_FIGURES = {  # of a job, by column: where result.json has them
    "val/loss": ("metrics", "val/loss"),
    "val/accuracy": ("metrics", "val/accuracy"),
    "tokens_per_s": ("tokens_per_s",),
    "peak_memory_mib": ("peak_memory_mib",),
    "wall_s": ("wall_s",),
}

Row = dict[str, Any]


class SweepTable(Callback):
    """Remembers where the sweep of this process is, for its last lines."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job."""
        SweepTable.folder = Path(config.hydra.sweep.dir).absolute()


def run_job(settings: Any, run_dir: Path) -> dict[str, Any]:
    """Runs one job as a command of its own, and returns what its `result.json` holds.

    A process that leaves none, since it was killed or crashed, gets one that says so.

    Args:
        settings: Hydra's own configuration of the job.
        run_dir: the job's folder.
    """
    overrides = [str(override) for override in settings.overrides.task]
    if os.environ.get(_RESUMED) and (done := _completed(run_dir, overrides)):
        return done
    (run_dir / "result.json").unlink(missing_ok=True)
    process = start(job_command(settings, run_dir, overrides), settings.runtime.cwd)
    try:
        code = process.wait()
    except BaseException:  # Ctrl-C reaches the job by itself; anything else must end it
        process.terminate()
        process.wait()
        raise
    result = read_result(run_dir)
    if result is None:
        result = {
            "status": "crashed",
            "error": _cause(code),
            "overrides": overrides,
            "run_dir": str(run_dir),
        }
        write_json(result, run_dir / "result.json")
    return result


def start(command: Sequence[str], cwd: str) -> subprocess.Popen[bytes]:
    """Starts the process of a job."""
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, JOB: "1"})


def job_command(settings: Any, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of one job."""
    flags = ["--config-name", str(settings.job.config_name)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != conf_dir():
            flags += ["--config-path", source.path]
    own = [
        str(override)
        for override in settings.overrides.hydra
        if not str(override).lstrip("+~").replace("/", ".").startswith(_SWEEPS_OWN)
    ]
    quoted = str(run_dir.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    place = [f'hydra.run.dir="{quoted}"', "hydra.mode=RUN", "hydra.output_subdir=null"]
    return [sys.executable, "-m", "xftrain", *flags, *overrides, *own, *place]


def resumed(overrides: Sequence[str]) -> list[str]:
    """The overrides with `resume_sweep=<folder>` worked in; unchanged where it is not there.

    Raises:
        ConfigError: there is no such sweep, or what it ran is not known.
    """
    named = [override for override in overrides if override.startswith(f"{RESUME}=")]
    if not named:
        os.environ.pop(_RESUMED, None)
        return list(overrides)
    folder = Path(named[-1].partition("=")[2]).expanduser()
    record = folder / "multirun.yaml"
    others = [override for override in overrides if not override.startswith(f"{RESUME}=")]
    if not record.is_file():
        raise ConfigError(f"{RESUME} must be the folder of a sweep, got {str(folder)!r}.")
    if not others:
        saved = yaml.safe_load(record.read_text(encoding="utf-8"))
        try:
            others = [str(override) for override in saved["hydra"]["overrides"]["task"]]
        except (KeyError, TypeError):
            raise ConfigError(
                f"{record} does not say what was run: repeat the sweep's overrides."
            ) from None
    os.environ[_RESUMED] = "1"
    return [*others, f"hydra.sweep.dir={folder}"]


def write_summary(folder: Path) -> list[Row]:
    """`summary.csv` and `summary.md` of a sweep's folder, from the results that are there."""
    rows = read_rows(folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _replace(folder / "summary.csv", _csv(rows, columns))
    _replace(folder / "summary.md", table(rows) + "\n")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """A row for each job that has a result, in the jobs' order."""
    rows: list[Row] = []
    for path in sorted(folder.rglob("result.json")):
        result = read_result(path.parent)
        if result is None:
            continue
        number = re.match(r"(\d+)_", path.parent.relative_to(folder).parts[0])
        row: Row = {"job": int(number[1]) if number else len(rows), "status": result["status"]}
        for override in result["overrides"]:
            key, _, value = override.partition("=")
            row[key.lstrip("+").replace("/", ".")] = value
        for column, place in _FIGURES.items():
            row[column] = _at(result, place)
        row["run_dir"] = str(path.parent)
        row["error"] = " ".join(str(result.get("error") or "").split())
        rows.append(row)
    return sorted(rows, key=lambda row: row["job"])


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: what differs between the jobs, their figures, and why some failed."""
    keys = [key for row in rows for key in row]
    overridden = [k for k in dict.fromkeys(keys) if k not in _known()]
    changed = [k for k in overridden if len({row.get(k) for row in rows}) > 1] or overridden
    columns = ["job", "status", *changed, *_FIGURES, "run_dir"]
    lines = [[_shown(row.get(column)) for column in columns] for row in rows]
    widths = [max(3, *(len(line[n]) for line in [columns, *lines])) for n in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True))} |"

    made = [line(columns), line(["-" * width for width in widths]), *map(line, lines)]
    made += [f"- job {row['job']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(made)


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What `result.json` holds; None where there is none, or half of one."""
    try:
        result: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return result


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """The file, whole or absent."""
    _replace(path, json.dumps(result, indent=2) + "\n")


def _completed(run_dir: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    result = read_result(run_dir)
    if result is None or result["status"] != "completed":
        return None
    return result if result["overrides"] == list(overrides) else None


def _cause(code: int) -> str:
    if code >= 0:
        return f"the process ended with code {code} and left no result"
    said = f"the process was ended by {signal.Signals(-code).name}"
    return said + ", as the system does where memory runs out" * (code == -signal.SIGKILL)


def _known() -> set[str]:
    return {"job", "status", *_FIGURES, "run_dir", "error"}


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


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
