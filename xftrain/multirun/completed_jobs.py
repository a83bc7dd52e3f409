"""Finds the completed jobs of a resumed sweep and checks that their configuration is unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from xftrain.config.compose import COMPOSITION_ERRORS, validate
from xftrain.config.composition_errors import sentence
from xftrain.config.overrides import as_typed
from xftrain.errors import ConfigError, SweepRefused
from xftrain.multirun.job_config import described, refuse_other_config
from xftrain.multirun.recorded_overrides import same_overrides
from xftrain.multirun.table import read_result


def completed(run_dir: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The result of a job that completed with these overrides; None if there is none."""
    result = read_result(run_dir)
    if result is None or result["status"] != "completed":
        return None
    return result if same_overrides(result["overrides"], overrides) else None


def refuse_other_jobs(config: DictConfig, folder: Path) -> None:
    """Compares each completed job of a sweep with its configuration today, before any job runs.

    The jobs of a search are unknown in advance; each is compared when it is drawn.

    Args:
        config: the sweep's configuration, Hydra's own node included.
        folder: the sweep's folder.

    Raises:
        SweepRefused: a job's configuration has changed, or can no longer be composed.
    """
    hydra = config.hydra
    if hydra.runtime.choices.get("hydra/sweeper", "basic") != "basic":
        return
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    before = HydraConfig.instance().cfg
    try:
        parsed = parser.parse_overrides([*params, *as_typed(hydra.overrides.task)])
        jobs = chain.from_iterable(BasicSweeper.split_arguments(parsed, None))
        for number, overrides in enumerate(jobs):
            job = loader.load_sweep_config(config, overrides)
            with open_dict(job.hydra.job):
                job.hydra.job.num, job.hydra.job.id = number, str(number)
            HydraConfig.instance().set_config(job)
            run_dir = folder / job.hydra.sweep.subdir
            if completed(run_dir, overrides):
                refuse_other_config(_described(job), run_dir)
    except COMPOSITION_ERRORS as error:
        said = str(error) if isinstance(error, ConfigError) else sentence(error)
        raise SweepRefused(said) from error
    finally:
        HydraConfig.instance().cfg = before


def _described(job: DictConfig) -> Mapping[str, Any]:
    with open_dict(job):
        del job["hydra"]
    return described(job, validate(job))
