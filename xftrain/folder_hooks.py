"""What is done about a folder before Hydra writes to it: its links, its lock, what it holds.

Hydra opens `xftrain.log` and overwrites `.hydra` before it calls this package. Imports no torch:
every command imports this.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from xftrain.errors import ConfigError, SweepRefused
from xftrain.folder_links import refuse_links
from xftrain.folder_lock import release_reserved, reserve
from xftrain.printable import one_line
from xftrain.processes import rank
from xftrain.root_schema import config_type_of
from xftrain.run_config import DoctorConfig, InfoConfig, SampleConfig
from xftrain.run_folder import refuse_trained, remember_hydra, restore_hydra

_ENDING_S = 30.0  # for a job of an earlier sweep, whose end was not waited for, to save and end

_WITHOUT_TRAINING = {
    SampleConfig: "a sample",
    DoctorConfig: "the doctor",
    InfoConfig: "a description",
}


class FolderHooks(Callback):
    """Refuses a folder that a link leads out of, or that another command is writing to."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a run, or a job of a sweep in its own process."""
        folder = _folder(config, "hydra.run.dir") if rank() == 0 else None
        if folder is None:
            return
        is_job = not OmegaConf.is_missing(config.hydra.job, "num")
        _reserve(folder, "hydra.run.dir", wait_s=_ENDING_S if is_job else 0.0)
        if (kind := config_type_of(config)) in _WITHOUT_TRAINING:
            try:
                refuse_trained(folder, _WITHOUT_TRAINING[kind])
            except ConfigError as error:
                raise SweepRefused(str(error)) from error
        remember_hydra(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep writes to its folder."""
        if (folder := _folder(config, "hydra.sweep.dir")) is not None:
            _reserve(folder, "hydra.sweep.dir")


def _folder(config: DictConfig, key: str) -> Path | None:
    """The folder that Hydra is going to make; None where it meets an error, which it reports.

    Raises:
        SweepRefused: Hydra would write to another one as well.
    """
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().cfg = cast(Any, config)  # for `${hydra:...}` in the name
        name = str(OmegaConf.select(config, key))
    except Exception:
        return None
    finally:
        HydraConfig.instance().cfg = before
    if "${" in name:  # as an escape made it; Hydra resolves the name again for the log and .hydra
        raise SweepRefused(
            f"{key} must be a folder whose name has no ${{, got {one_line(name)}: Hydra would put "
            "a value in its place; choose or rename the folder."
        )
    if "\0" in name:
        return None
    path, here = Path(name), Path.cwd()
    below = path.relative_to(here) if path.is_relative_to(here) else path
    if "::" in str(below) and not below.is_absolute():  # a path in an archive to fsspec
        raise SweepRefused(
            f"{key} must be a folder whose name has no ::, got {one_line(name)}: Lightning would "
            "take it for a URL; choose or rename the folder."
        )
    return path


def _reserve(folder: Path, key: str, *, wait_s: float = 0.0) -> None:
    try:
        # first, as the lock is a file too; the names of a sweep's jobs are known to nobody yet
        refuse_links(folder, key, may_hold_data=key == "hydra.run.dir")
        with suppress(OSError):  # Hydra meets the same error, and it is reported then
            reserve(folder, key, wait_s=wait_s)
    except ConfigError as error:
        raise SweepRefused(str(error)) from error


def leave_folders() -> None:
    """At the end of a command: what a refused one has overwritten is put back."""
    restore_hydra()
    release_reserved()
