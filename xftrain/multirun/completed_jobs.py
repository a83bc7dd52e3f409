"""Finds the completed jobs of a sweep, and checks the jobs of a sweep before any of them runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from xftrain.config.compose import COMPOSITION_ERRORS, validate
from xftrain.config.composition_errors import sentence
from xftrain.config.overrides import override_strings
from xftrain.errors import ConfigError, SweepRefused
from xftrain.multirun.job_config import job_description, refuse_other_config
from xftrain.multirun.record import is_resumed
from xftrain.multirun.recorded_overrides import same_overrides
from xftrain.multirun.table import read_result, shared_folder

_DISTINCT = "${hydra.job.num}${xf.slug:"  # the number, and overrides that do not begin with a digit


def completed(run_dir: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The result of a job that completed with these overrides; None if there is none."""
    result = read_result(run_dir)
    if result is None or result["status"] != "completed":
        return None
    return result if same_overrides(result["overrides"], overrides) else None


def check_jobs(config: DictConfig, folder: Path) -> None:
    """Checks the jobs of a sweep before any of them runs.

    Jobs must have different folders. In a resumed sweep, the configuration of each completed job
    must equal the one that it would have now. The jobs of a search are unknown in advance; each is
    checked when it is drawn.

    Args:
        config: the sweep's configuration, Hydra's own node included.
        folder: the sweep's folder.

    Raises:
        SweepRefused: a job cannot be composed, its configuration has changed, or its folder is
            that of another job.
    """
    if config.hydra.runtime.choices.get("hydra/sweeper", "basic") == "basic":
        try:
            _check_each(config, folder)
        except COMPOSITION_ERRORS as error:
            message = str(error) if isinstance(error, ConfigError) else sentence(error)
            raise SweepRefused(message) from error


def _check_each(config: DictConfig, folder: Path) -> None:
    numbers: dict[str, int] = {}  # job numbers by folder
    for number, overrides, job in _jobs(config):
        run_dir = folder / job.hydra.sweep.subdir
        path = os.path.realpath(run_dir)
        if (other := numbers.setdefault(path, number)) != number:
            raise SweepRefused(shared_folder(other, number, run_dir))
        if is_resumed() and completed(run_dir, overrides):
            refuse_other_config(_job_description(job), run_dir)


def may_share_folders(config: DictConfig) -> bool:
    """Whether the folder names of two jobs may be equal, since they lack the job's number."""
    names = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(names, dict)
    return not str(names["subdir"]).startswith(_DISTINCT)


def _jobs(config: DictConfig) -> Iterator[tuple[int, list[str], DictConfig]]:
    """The number, the overrides and the composed configuration of each job."""
    hydra = config.hydra
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    before = HydraConfig.instance().cfg
    try:
        parsed = parser.parse_overrides([*params, *override_strings(hydra.overrides.task)])
        jobs = chain.from_iterable(BasicSweeper.split_arguments(parsed, None))
        for number, overrides in enumerate(jobs):
            job = loader.load_sweep_config(config, overrides)
            with open_dict(job.hydra.job):
                job.hydra.job.num, job.hydra.job.id = number, str(number)
            HydraConfig.instance().set_config(job)
            yield number, list(overrides), job
    finally:
        HydraConfig.instance().cfg = before


def _job_description(job: DictConfig) -> Mapping[str, Any]:
    with open_dict(job):
        del job["hydra"]
    return job_description(job, validate(job))
