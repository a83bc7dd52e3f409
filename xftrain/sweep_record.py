"""What a sweep runs, written down so that it can go on; read as a file that may come from anyone.

Imports no torch: every command imports this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.errors import ConfigError
from xftrain.files import read_json, write_json
from xftrain.overrides import all_groups, as_typed, quoted
from xftrain.registry import conf_dir

RESUME = "resume_sweep"  # the override that goes on with a sweep
_RESUMED = "XFTRAIN_RESUMED_SWEEP"  # in the sweep's processes, whoever starts them
_RECORD = ".sweep.json"
_OWN = ("command-line", "hydra.searchpath in main", "hydra.searchpath in command-line")
# Overrides that are about the sweep rather than about a job, or about what is run.
MODE = ("hydra.mode", "hydra.run", "hydra.sweep.dir", "hydra.output_subdir")
# Of a record that may come from anyone: an override rather than a flag, and those of Hydra's own
# that name no code, folder or command.
_OVERRIDE = re.compile(r"[+~]*\w[\w./@]*(=.*)?", re.DOTALL)
_OPTIONS = re.compile(r"[\w, ()\[\]*-]*")
_HARMLESS = re.compile(
    r"\+?hydra[./](launcher|sweeper)=\w+|hydra\.launcher\.n_jobs=\d+"
    r"|hydra\.sweeper\.(n_trials|n_jobs|max_trials|study_name|direction|seed|sampler\.seed)=\w+"
)


def write_record(config: DictConfig, folder: Path) -> None:
    """What `resumed` reads.

    Args:
        config: of the sweep, Hydra's own part included.
        folder: of the sweep.
    """
    hydra = config.hydra
    record = {
        "config_name": hydra.job.config_name,
        "config_dirs": [s.path for s in hydra.runtime.config_sources if s.provider in _OWN],
        "overrides": as_typed(hydra.overrides.task) + kept(hydra.overrides.hydra, MODE),
    }
    write_json(record, folder / _RECORD)


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
    typed = named[-1].partition("=")[2]
    folder = Path(typed).expanduser()
    others = [override for override in overrides if not override.startswith(f"{RESUME}=")]
    record = read_json(folder / _RECORD)
    if record is None:
        raise ConfigError(f"{RESUME} must be the folder of a sweep, got {typed!r}.")
    arguments = ["--multirun", *others]
    if not has_flags and all(_key(override).startswith("hydra.") for override in others):
        command = _trusted(record)
        if command is None:
            raise ConfigError(
                f"the sweep in {str(folder)!r} used options of its own folder, _target_, an "
                "interpolation or Hydra's own keys, which are not taken from a file: repeat its "
                f"whole command and add {RESUME}={folder}."
            )
        arguments = ["--multirun", *command, *others]
    elif missing := _missing(record, others):
        raise ConfigError(
            f"the sweep in {str(folder)!r} had {missing}, which this command has not: type "
            f"{RESUME}={folder} alone, or repeat its whole command with it."
        )
    os.environ[_RESUMED] = "1"
    return [*arguments, f"hydra.sweep.dir={quoted(folder)}"]


def is_trusted(folder: Path) -> bool:
    """Whether `resume_sweep=<folder>` alone goes on with the sweep there."""
    record = read_json(folder / _RECORD)
    return record is not None and _trusted(record) is not None


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".")


def _missing(record: Mapping[str, Any], typed: Sequence[str]) -> str | None:
    """An override of the sweep that is not among those typed: that would be another sweep."""
    recorded = record.get("overrides")
    mine = {(_key(override), override.partition("=")[2]) for override in typed}
    for override in recorded if isinstance(recorded, list) else []:
        key = _key(str(override))
        if not key.startswith("hydra.") and (key, str(override).partition("=")[2]) not in mine:
            return str(override)
    return None


def _trusted(record: Mapping[str, Any]) -> list[str] | None:
    """The command of a record; None where it could run code: a folder may come from anyone."""
    name, typed = record.get("config_name"), record.get("overrides")
    if not isinstance(typed, list) or not all(isinstance(one, str) for one in typed):
        return None
    roots = {path.stem for path in conf_dir().glob("*.yaml")}
    if record.get("config_dirs") != [] or not isinstance(name, str) or name not in roots:
        return None
    groups = all_groups()
    for override in typed:
        key, value = _key(override), override.partition("=")[2]
        if "_target_" in override or "${" in override or not _OVERRIDE.fullmatch(override):
            return None
        if key.partition(".")[0] == "hydra" and not _HARMLESS.fullmatch(override):
            return None
        # an option is a word: a path would lead out of the folder of options
        is_group = key.partition("@")[0].replace(".", "/") in groups
        if ".." in key or (is_group and not _OPTIONS.fullmatch(value)):
            return None
    return ["--config-name", name, *typed]


def is_resumed() -> bool:
    """Whether this sweep goes on with one that was there."""
    return _RESUMED in os.environ


def kept(overrides: Any, left_out: tuple[str, ...]) -> list[str]:
    """Overrides of Hydra's own configuration but those that begin so."""
    return [one for one in as_typed(overrides) if not _key(one).startswith(left_out)]
