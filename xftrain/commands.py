"""What a configuration is a command for: a training run, the doctor alone, or a sample."""

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

from xftrain.root_schema import config_type_of
from xftrain.run_config import DoctorConfig, InfoConfig, SampleConfig

_PLOTS = "torchmetrics.utilities.plot"

# of the composed configuration, the run folder, and what `validate` made of it, if it was called
Command = Callable[[DictConfig, Path | None, Any], dict[str, Any]]


def run(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """Runs what the configuration describes and returns what `result.json` in its folder holds.

    Args:
        cfg: what `xftrain.compose` returns.
        run_dir: the run's folder; made under `outputs/` where it is not given.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    return command_of(cfg)(cfg, run_dir, None)


def command_of(cfg: DictConfig) -> Command:
    """The function for this configuration; imports what it needs, which takes seconds."""
    kind = config_type_of(cfg)
    with _without_scipy_signal(), _with_plots_later():
        if kind is DoctorConfig:
            from xftrain.benchmark.doctor_command import run_doctor

            return run_doctor
        if kind is InfoConfig:
            from xftrain.info import info

            return info
        if kind is SampleConfig:
            from xftrain.sample import sample

            return sample
        from xftrain.runner import run as train

        return train


@contextmanager
def _without_scipy_signal() -> Iterator[None]:
    """Spares the start of a command a second where SciPy is installed, as it is beside Optuna.

    torchmetrics, which Lightning imports, loads all of `scipy.signal` to add a name to it that only
    a metric of speech uses. It finds that name here.
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
    """Stands for `torchmetrics.utilities.plot`: its functions import that once they are called."""

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
    """Spares the start of a command a tenth of its time, that of importing matplotlib.

    torchmetrics, which Lightning imports, needs it where a metric is plotted, and imports it then.
    """
    hide = not {_PLOTS, "torchmetrics", "matplotlib"} & sys.modules.keys()
    if hide:
        sys.modules[_PLOTS] = _PlotsLater(_PLOTS)
    try:
        yield
    finally:
        if hide:
            del sys.modules[_PLOTS]
