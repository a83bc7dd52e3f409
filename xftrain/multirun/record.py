"""Records a sweep's command, so that the sweep can be resumed; a record is untrusted when read.

Every command imports this module, so it must not import torch.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.config.overrides import literal, override_strings
from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError
from xftrain.folders.seal import has_valid_seal, sealed
from xftrain.multirun.recorded_overrides import NotPlain, plain_overrides
from xftrain.utils.files import expand_home, read_json, write_json
from xftrain.utils.printable import one_line, shortened
from xftrain.utils.redaction import hidden

RESUME_KEY = "resume_sweep"  # the override that resumes a sweep
TRUST_KEY = "trust_sweep"  # the override that allows a record without a valid seal
_RESUMED = "XFTRAIN_RESUMED_SWEEP"  # environment variable of all processes of a resumed sweep
_RECORD = ".sweep.json"
_USER_PROVIDERS = ("command-line", "hydra.searchpath in main", "hydra.searchpath in command-line")
# Overrides about the sweep itself rather than about its jobs.
MODE_KEYS = ("hydra.mode", "hydra.run", "hydra.sweep.dir", "hydra.output_subdir")
_MAX_SHOWN, _MAX_OVERRIDE = 300, 60  # longest part of a record, and longest override, in a message
_MAX_LISTED = 10_000  # longest list of all overrides in a message
# Keys that name files which a run reads.
_NAMES_INPUT = re.compile(
    r"ckpt|init_from|data|.*(path|dir|file|storage|links)", re.ASCII
).fullmatch


def make_record(config: DictConfig) -> dict[str, Any]:
    """The record of a sweep, which `resumed` reads.

    Args:
        config: the sweep's configuration, Hydra's own node included.
    """
    hydra = config.hydra
    return {
        "config_name": hydra.job.config_name,
        "config_dirs": [
            s.path for s in hydra.runtime.config_sources if s.provider in _USER_PROVIDERS
        ],
        "overrides": override_strings(hydra.overrides.task)
        + without_keys(hydra.overrides.hydra, MODE_KEYS),
    }


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the record into the sweep's folder, with this user's seal."""
    write_json(sealed(record, folder), folder / _RECORD)


def resumed(overrides: Sequence[str], *, has_flags: bool) -> list[str]:
    """Replaces `resume_sweep=<folder>` by the recorded command; other overrides are unchanged.

    Args:
        overrides: the overrides of the command line.
        has_flags: whether the command line has flags too, such as `--config-name`.

    Raises:
        ConfigError: there is no such sweep, or the user must repeat its whole command.
    """
    os.environ.pop(_RESUMED, None)
    others, named = _split_off(overrides, RESUME_KEY)
    others, trust = _split_off(others, TRUST_KEY)
    if trust not in (None, "true", "false") or (trust and named is None):
        raise ConfigError(
            f"{TRUST_KEY} must be true or false and needs {RESUME_KEY}, got {trust!r}."
        )
    if named is None:
        return others
    folder = expand_home(RESUME_KEY, named)
    record = read_json(folder / _RECORD) if named else None
    if record is None:
        raise ConfigError(f"{RESUME_KEY} must be the folder of a sweep, got {named!r}.")
    arguments = ["--multirun", *others]
    if not has_flags and all(_key(override).startswith("hydra.") for override in others):
        command = _command(record, folder, is_trusted=trust == "true")
        arguments = ["--multirun", *command, *others]
    elif missing := _missing(record, others):
        raise ConfigError(
            f"the sweep in {str(folder)!r} had {_short(missing)}, which this command lacks: "
            f"type {_resume_override(folder)} alone, or repeat its whole command with it."
        )
    os.environ[_RESUMED] = "1"
    return [*arguments, f"hydra.sweep.dir={literal(folder)}"]


def _split_off(overrides: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Removes all overrides of a key, and returns the value of the last one."""
    others = [override for override in overrides if not override.startswith(f"{name}=")]
    values = [o.partition("=")[2] for o in overrides if o.startswith(f"{name}=")]
    return others, values[-1] if values else None


def is_resumable(folder: Path) -> bool:
    """Whether `resume_sweep=<folder>` alone resumes the sweep there."""
    record = read_json(folder / _RECORD)
    try:
        return record is not None and bool(_command(record, folder, is_trusted=False))
    except ConfigError:
        return False


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".")


def _missing(record: Mapping[str, Any], typed: Sequence[str]) -> str | None:
    """A recorded override that the command line lacks, so that it is of another sweep; or None."""
    recorded = record.get("overrides")
    mine = {(_key(override), override.partition("=")[2]) for override in typed}
    for override in recorded if isinstance(recorded, list) else []:
        key = _key(str(override))
        if not key.startswith("hydra.") and (key, str(override).partition("=")[2]) not in mine:
            return str(override)
    return None


def _command(record: Mapping[str, Any], folder: Path, *, is_trusted: bool) -> list[str]:
    """The command of a record, reduced to plain values of known keys.

    Raises:
        ConfigError: the command could run code, or its folder is not trusted.
    """
    name, recorded = record.get("config_name"), record.get("overrides")
    remedy = f"repeat its whole command and add {_resume_override(folder)}"
    try:
        if not isinstance(recorded, list) or not all(isinstance(one, str) for one in recorded):
            raise NotPlain("no list of overrides")
        if not isinstance(name, str) or name not in {
            path.stem for path in conf_dir().glob("*.yaml")
        }:
            raise NotPlain("a configuration of its own")
        if record.get("config_dirs") != []:
            raise NotPlain("a folder of options")
        command = plain_overrides(name, recorded)
    except NotPlain as reason:
        raise ConfigError(
            f"the sweep in {str(folder)!r} used options of its own folder, _target_, an "
            f"interpolation or Hydra's own keys, which are not taken from a file "
            f"({_short(str(reason))}): {remedy}."
        ) from reason
    is_own = has_valid_seal(record, folder)
    if not is_own and (sent := [_key(one) for one in command if _may_set_destination(one)]):
        raise ConfigError(
            f"the sweep in {str(folder)!r} was not recorded by this user on this machine, and its "
            f"record says where runs are recorded ({_short(', '.join(sent))}): {remedy}."
        )
    if not is_own and len(_listed(name, command)) > _MAX_LISTED:
        raise ConfigError(
            f"the sweep in {str(folder)!r} was not recorded by this user on this machine, and its "
            f"{len(command):,} overrides are too long to be shown: {remedy}."
        )
    if not is_trusted and not is_own:
        shown = _listed(name, command)
        raise ConfigError(
            f"the sweep in {str(folder)!r} was not recorded by this user on this machine, or not "
            f"in this folder, and its record would run {shown}: {remedy}, or add "
            f"{TRUST_KEY}=true, with which these overrides are read from the file as plain values."
        )
    return ["--config-name", name, *command]


def _resume_override(folder: Path) -> str:
    return shlex.quote(f"{RESUME_KEY}={folder}")


def _may_set_destination(override: str) -> bool:
    """Whether an override may set where a logger records; `logger.tensorboard=null` does not."""
    key, value = _key(override), override.partition("=")[2]
    return key.startswith("logger.") and value != "null" or key == "logger" and "{" in value


def _listed(name: str, command: Sequence[str]) -> str:
    """Lists the whole command, each value shortened so that a long one hides no later ones.

    Overrides of keys that name what a run reads come first.
    """
    reads = [one for one in command if _NAMES_INPUT(_key(one)) or "{" in one]
    others = [one for one in command if one not in reads]
    # neither the end of a path nor a key of a mapping may be left out
    shortened_overrides = [_short(one, _MAX_LISTED) for one in reads]
    shortened_overrides += [_short(one, _MAX_OVERRIDE) for one in others]
    return " ".join(["--config-name", name, *shortened_overrides])


def _short(text: str, most: int = _MAX_SHOWN) -> str:
    return shortened(one_line(hidden(text)), most)


def is_resumed() -> bool:
    """Whether this sweep resumes an earlier one."""
    return _RESUMED in os.environ


def without_keys(overrides: Any, left_out: tuple[str, ...]) -> list[str]:
    """The overrides of Hydra's own node, without those with one of these prefixes."""
    return [one for one in override_strings(overrides) if not _key(one).startswith(left_out)]
