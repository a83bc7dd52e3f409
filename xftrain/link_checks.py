"""Looks for links in an existing run folder before Hydra opens its log there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from xftrain.errors import ConfigError, SweepRefused
from xftrain.files import refuse_links


class LinkChecks(Callback):
    """Refuses a run folder with a link in it that leads out of it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before anything is written."""
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # for `${hydra:...}` in the name
            folder = Path(str(OmegaConf.select(config, "hydra.run.dir")))
        except Exception:
            return  # Hydra meets the same error, and it is reported then
        finally:
            HydraConfig.instance().cfg = before
        try:
            refuse_links(folder, "hydra.run.dir")
        except ConfigError as error:
            raise SweepRefused(str(error)) from error
