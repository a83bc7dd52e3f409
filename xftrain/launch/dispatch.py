"""Dispatches a configuration to its command, such as a training run, a sample or the doctor."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from xftrain.config.command_configs import (
    DataConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    InfoConfig,
    SampleConfig,
)
from xftrain.config.root_schema import config_type_of
from xftrain.folders.reserved import ReservedFolders
from xftrain.utils.untrusted_folder import protected_from_working_folder

_PLOTS = "torchmetrics.utilities.plot"

# Arguments: the composed configuration, the run folder, the checked configuration, and the folders
# that the command line has reserved; the last two are None for a run that is started from Python.
Command = Callable[[DictConfig, Path | None, Any, ReservedFolders | None], dict[str, Any]]


def run(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """Runs the command that the configuration describes and returns the content of `result.json`.

    Args:
        cfg: what `xftrain.compose` returns.
        run_dir: the run folder; None makes one under `outputs/`.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    with protected_from_working_folder():
        return command_of(cfg)(cfg, run_dir, None, None)


def command_of(cfg: DictConfig) -> Command:
    """The function that runs this configuration; importing it takes seconds."""
    kind = config_type_of(cfg)
    with _without_scipy_signal(), _with_plots_later():
        if kind is DoctorConfig:
            from xftrain.benchmark.doctor_command import run_doctor

            return run_doctor
        if kind is InfoConfig:
            from xftrain.commands.info import info

            return info
        if kind is DataConfig:
            from xftrain.commands.data import describe_data

            return describe_data
        if kind is SampleConfig:
            from xftrain.commands.sample import sample

            return sample
        if kind is EvaluateConfig:
            from xftrain.commands.evaluate import evaluate

            return evaluate
        if kind is ExportConfig:
            from xftrain.commands.export import export

            return export
        from xftrain.commands.train import run as train

        return train


@contextmanager
def _without_scipy_signal() -> Iterator[None]:
    """Saves a second at startup if SciPy is installed, for example with Optuna.

    torchmetrics, which Lightning imports, loads all of `scipy.signal` to add a name that only a
    speech metric uses. Here a stand-in module has that name already.
    """
    name = "scipy.signal"
    hide = not {name, "torchmetrics"} & sys.modules.keys() and importlib.util.find_spec("scipy")
    if hide:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name])["hamming"] = None
    try:
        yield
    finally:
        if hide:
            del sys.modules[name]


class _PlotsLater(ModuleType):
    """Stand-in for `torchmetrics.utilities.plot`, which is imported at the first call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():  # a type, for annotations
            return object
        return functools.partial(_plot, name)


def _plot(function: str, /, *arguments: Any, **more: Any) -> Any:
    return getattr(importlib.import_module(_PLOTS), function)(*arguments, **more)


@contextmanager
def _with_plots_later() -> Iterator[None]:
    """Saves the import of matplotlib, a tenth of the startup time.

    torchmetrics, which Lightning imports, then imports matplotlib only when it plots a metric.
    """
    hide = not {_PLOTS, "torchmetrics", "matplotlib"} & sys.modules.keys()
    if hide:
        sys.modules[_PLOTS] = _PlotsLater(_PLOTS)
    try:
        yield
    finally:
        if hide:
            del sys.modules[_PLOTS]
