"""`--config-name doctor`: runs the doctor without a training run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.benchmark import environment
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.session import run_suite
from xftrain.benchmark.tables import table
from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.config import registry
from xftrain.config.command_configs import DoctorConfig
from xftrain.config.compose import validate_as
from xftrain.config.option_config import OptionConfig
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.train import hardware

log = logging.getLogger(__name__)


def run_doctor(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: DoctorConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Runs the doctor and returns the content of `result.json`.

    Args:
        cfg: what `xftrain.compose(config_name="doctor")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the rows cannot be written.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, DoctorConfig.output)
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        checked = checked or validate_as(DoctorConfig, cfg)
        device, precision = hardware.resolve(checked.accelerator, "auto")
        result["device"] = hardware.device_name(device)
        description = environment.describe(device)
        log.info("%s", table(["what", "here"], [[k, v] for k, v in description.items()]))
        dtype = str(hardware.compute_dtype(precision)).removeprefix("torch.")
        benchmarks = list(map(_benchmark, checked.callbacks.values()))
        folder.resume_run()  # its rows are kept
        run_suite(benchmarks, Context(run_dir, device, dtype, {}, []))
    return result


def _benchmark(option: OptionConfig) -> Benchmark:
    made = registry.build(option)
    if not isinstance(made, Benchmark) or made.needs_model:
        raise ConfigError(
            f"{option.key} needs a training run, which --config-name doctor does not have; use it "
            "with --config-name benchmark."
        )
    return made
