"""Checks and locks a folder before Hydra writes to it.

Hydra opens `xftrain.log` and overwrites `.hydra` before it calls the main function. Every command
imports this module, so it must not import torch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from xftrain.config.root_schema import config_type_of
from xftrain.errors import ConfigError, SweepRefused
from xftrain.folders.links import refuse_links
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import refuse_training_folder, restore_hydra
from xftrain.multirun.command_state import current_state
from xftrain.utils.printable import one_line
from xftrain.utils.processes import rank

_ENDING_S = 30.0  # time for a job of an interrupted sweep to save a checkpoint and end


class FolderHooks(Callback):
    """Refuses a folder with a link that leads out of it, or that another command writes to."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks and locks the folder of a run, or of a sweep's job in its own process."""
        folder = _folder(config, "hydra.run.dir") if rank() == 0 else None
        if folder is None:
            return
        is_job = not OmegaConf.is_missing(config.hydra.job, "num")
        _reserve(folder, "hydra.run.dir", wait_s=_ENDING_S if is_job else 0.0)
        if (output := config_type_of(config).output) is not None:
            try:
                refuse_training_folder(folder, output)
            except ConfigError as error:
                raise SweepRefused(str(error)) from error
        current_state().reserved.remember_hydra(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks and locks the folder of a sweep."""
        if (folder := _folder(config, "hydra.sweep.dir")) is not None:
            _reserve(folder, "hydra.sweep.dir")


def _folder(config: DictConfig, key: str) -> Path | None:
    """The folder that Hydra is about to make; None if Hydra will report an error instead.

    Raises:
        SweepRefused: Hydra would write to another folder as well.
    """
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().cfg = cast(Any, config)  # for `${hydra:...}` in the name
        name = str(OmegaConf.select(config, key))
    except Exception:
        return None
    finally:
        HydraConfig.instance().cfg = before
    if "${" in name:  # was escaped; Hydra resolves the name again for the log and .hydra
        raise SweepRefused(
            f"{key} must be a folder whose name has no ${{, got {one_line(name)}: Hydra would put "
            "a value in its place; choose or rename the folder."
        )
    if "\0" in name:
        return None
    path, here = Path(name), Path.cwd()
    below = path.relative_to(here) if path.is_relative_to(here) else path
    if "::" in str(below) and not below.is_absolute():  # fsspec reads it as a path in an archive
        raise SweepRefused(
            f"{key} must be a folder whose name has no ::, got {one_line(name)}: Lightning would "
            "take it for a URL; choose or rename the folder."
        )
    return path


def _reserve(folder: Path, key: str, *, wait_s: float = 0.0) -> None:
    try:
        # before locking, since the lock is a file too; the job names of a sweep are not known yet
        refuse_links(folder, key, may_hold_data=key == "hydra.run.dir")
        with suppress(OSError):  # Hydra gets the same error and reports it
            current_state().reserved.reserve(folder, key, wait_s=wait_s)
    except ConfigError as error:
        raise SweepRefused(str(error)) from error


def release_folders(reserved: ReservedFolders) -> None:
    """Unlocks folders at the end of a command, and restores files that a refused one overwrote."""
    restore_hydra(reserved)
    reserved.release()
