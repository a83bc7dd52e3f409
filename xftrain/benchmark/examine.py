"""`--config-name doctor`: the doctor alone, without a training run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain import config, registry
from xftrain.benchmark import environment
from xftrain.benchmark.sweep import Context, run_sweeps
from xftrain.benchmark.tables import table
from xftrain.results import recorded
from xftrain.training import hardware

log = logging.getLogger(__name__)


def examine(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Runs the doctor and returns what `result.json` holds.

    Args:
        cfg: what `xftrain.compose(config_name="doctor")` returns.
        run_dir: the run's folder.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the rows cannot be written.
    """
    with recorded(run_dir) as result:
        options = config.validate(cfg)
        device, precision = hardware.resolve(options["accelerator"], "auto")
        result["device"] = environment.device_name(device)
        found = environment.describe(device)
        log.info("%s", table(["what", "here"], [[k, v] for k, v in found.items()]))
        dtype = str(hardware.compute_dtype(precision)).removeprefix("torch.")
        sweeps = [
            registry.build("callbacks", f"callbacks.{key}", node)
            for key, node in options["callbacks"].items()
        ]
        run_sweeps(sweeps, Context(run_dir, device, dtype, options, []))
    return result
