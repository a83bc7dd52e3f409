"""Checks a sweep or a search before its first job.

A search is a sweep whose jobs are chosen from the results of earlier ones, for example by Optuna.
Every command imports this module, so it must not import torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xftrain.config.compose import COMPOSITION_ERRORS
from xftrain.config.composition_errors import sentence
from xftrain.config.overrides import all_groups, normalize_argv, override_strings
from xftrain.errors import ConfigError, SweepRefused
from xftrain.folders.sqlite_files import create_or_check_database
from xftrain.multirun.command_state import current_state
from xftrain.multirun.record import RESUME_KEY, is_resumed
from xftrain.multirun.recorded_overrides import MAX_JOBS, MAX_PROCESSES, num_values
from xftrain.utils.processes import is_rank


class SweepChecks(Callback):
    """Refuses a sweep that cannot succeed, and records whether a database stores its trials."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the sweep before its first job, and before `SweepTable` clears earlier jobs.

        Raises:
            SweepRefused: the sweep cannot run; the message says why.
        """
        try:
            current_state().sweep.is_stored = _checked(config)
        except COMPOSITION_ERRORS as error:
            raise SweepRefused(
                str(error) if isinstance(error, ConfigError) else sentence(error)
            ) from error


def _checked(config: DictConfig) -> bool:
    """Checks a sweep, and returns whether a database stores its trials.

    Raises:
        ConfigError: the sweep cannot be launched or resumed, or its study is of other runs.
        HydraException: a choice of the sweep cannot be composed.
    """
    if is_rank():
        raise ConfigError(
            "torchrun starts the ranks of one run, and a sweep starts those of each job by itself: "
            "run it without torchrun."
        )
    sweeper, choices = config.hydra.sweeper, config.hydra.runtime.choices
    if choices.get("hydra/launcher") == "submitit_slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm needs a Slurm cluster, and srun is not on this machine: "
            "hydra/launcher=submitit_local runs the same jobs here."
        )
    params = _slashed(sweeper.get("params") or {}, config)
    if params:
        with read_write(sweeper), open_dict(sweeper):
            sweeper.params = dict(param.split("=", 1) for param in params)
    typed = [*params, *override_strings(config.hydra.overrides.task)]
    # the later of two overrides of one key applies
    overrides = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(typed)}
    _check_number(overrides)
    if choices.get("hydra/sweeper") != "optuna":
        return False
    _check_size(sweeper)
    storage = sweeper.storage
    if is_resumed():
        _check_resumed(storage, OmegaConf.select(sweeper, "sampler.seed"))
    _check_choices(config, overrides)
    if storage is None:
        return False
    fixed = {
        key: override.get_value_element_as_str()
        for key, override in overrides.items()
        if not override.is_sweep_override()
    }
    if "cmaes" in str(sweeper.get("sampler", {}).get("_target_", "")).lower():
        raise ConfigError(
            f"hydra/sweeper/sampler=cmaes keeps its state as a pickle, which is never read from "
            f"{storage}: choose another sampler, or remove hydra.sweeper.storage."
        )
    _check_study(str(storage), sweeper.study_name, fixed)
    return True


def _slashed(params: Mapping[str, Any], config: DictConfig) -> list[str]:
    """The parameters as overrides, with dotted groups rewritten as slashed ones."""
    files = [Path(s.path) for s in config.hydra.runtime.config_sources if s.schema == "file"]
    return normalize_argv([f"{key}={value}" for key, value in params.items()], all_groups(*files))


def _check_number(overrides: Mapping[str, Override]) -> None:
    """Limits the number of jobs, since all of them are listed before the first one runs."""
    numbers = {key: num_values(override) for key, override in overrides.items()}
    if math.prod(numbers.values()) > MAX_JOBS:
        key = max(numbers, key=lambda name: numbers[name])
        raise ConfigError(
            f"a sweep must have at most {MAX_JOBS:,} jobs, and {key} alone has {numbers[key]:,.0f} "
            "values: remove some."
        )


def _check_size(sweeper: DictConfig) -> None:
    """Limits the number of trials, since all of them may be drawn before the first one runs."""
    for key, most in {"n_trials": MAX_JOBS, "n_jobs": MAX_PROCESSES}.items():
        number = sweeper.get(key)
        if number is not None and not 1 <= number <= most:
            raise ConfigError(
                f"hydra.sweeper.{key} must be an integer from 1 to {most:,}, got {number}."
            )


def _check_resumed(storage: str | None, seed: int | None) -> None:
    if storage is not None:
        raise ConfigError(
            f"the search in {storage} resumes by itself: repeat its command without {RESUME_KEY}."
        )
    if seed is None:
        raise ConfigError(
            f"{RESUME_KEY} draws the trials of a search again, for which "
            "hydra.sweeper.sampler.seed must be an integer, got null: start a new search with one, "
            "or with hydra.sweeper.storage=sqlite:///search.db, from which a search resumes."
        )


def _check_choices(config: DictConfig, overrides: Mapping[str, Override]) -> None:
    """Composes every choice, since a mistyped one would end the search once it is drawn."""
    loader = GlobalHydra.instance().config_loader()
    fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
    drawn = {
        key: list(override.sweep_string_iterator())
        for key, override in overrides.items()
        if override.is_choice_sweep()
    }
    for i in range(max(map(len, drawn.values()), default=0)):
        job = [f"{key}={choices[i % len(choices)]}" for key, choices in drawn.items()]
        loader.load_sweep_config(config, fixed + job)


def _check_study(storage: str, name: str | None, fixed: Mapping[str, str]) -> None:
    """Refuses a study of other runs, such as of another model, whose results do not apply."""
    create_or_check_database(storage, "hydra.sweeper.storage")
    import optuna

    try:
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        trials = optuna.load_study(name, storage).trials if name in known else []
    except Exception as error:  # the database's driver may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"hydra.sweeper.storage={storage} cannot be opened ({reason}); a file is named as in "
            "sqlite:///search.db."
        ) from error
    if any(trial.state == optuna.trial.TrialState.WAITING for trial in trials):
        raise ConfigError(
            f"the study {name} in {storage} has a trial that waits to be run, whose values are not "
            "checked: choose another hydra.sweeper.study_name."
        )
    if trials and trials[-1].user_attrs != fixed:
        was = " ".join(f"{key}={value}" for key, value in trials[-1].user_attrs.items())
        raise ConfigError(
            f"the study {name} in {storage} is of other runs ({was}): repeat their overrides, or "
            "choose another hydra.sweeper.study_name."
        )
