"""Weights & Biases, online or in a folder of the run."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from xftrain.errors import RunError
from xftrain.training.tracker import Tracker

log = logging.getLogger(__name__)

_OFFLINE = ("offline", "dryrun", "disabled")  # of WANDB_MODE
_WORKING_FOLDER = Path("wandb", "settings")


class WandB(Tracker):
    """A run of Weights & Biases that holds the metrics, the configuration and a sample.

    The package records nothing else: neither what is printed, nor the command line, nor git.

    Args:
        run_dir: the run's folder, in which `wandb/` is made.
        project: the project on the server.
        run_name: the name of the run there; None is the name of the run's folder.
        entity: the user or team on the server; None is the one that is logged in.
        group: the name under which the server shows several runs together.
        offline: whether the run is recorded in its folder alone; `wandb sync` uploads it later.
            `WANDB_MODE=offline` does the same.
    """

    needs_package = "wandb"

    def __init__(
        self,
        run_dir: Path,
        *,
        project: str = "xftrain",
        run_name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__(run_dir)
        self.project, self.run_name = project, run_name or run_dir.name
        self.entity, self.group, self.offline = entity, group, offline

    def make(self) -> WandbLogger:
        """Begins the run; offline or online, as `offline` and WANDB_MODE say.

        Raises:
            RunError: a file of the working folder would choose the server.
        """
        mode = "offline" if self.offline else os.environ.get("WANDB_MODE", "online")
        if mode not in _OFFLINE and _WORKING_FOLDER.exists():
            raise RunError(
                f"{_WORKING_FOLDER} in the working folder may name another server, and the package "
                "reads it: move it to ~/.config/wandb/settings if it is yours."
            )
        if mode in _OFFLINE:  # else the package would report its own errors over the network
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            show_info=False,
            silent=mode in _OFFLINE,  # else it says at the end what it has sent where
            x_disable_meta=True,
            x_save_requirements=False,
        )
        logger = WandbLogger(
            name=self.run_name,
            save_dir=self.run_dir,
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=mode,
            settings=settings,
        )
        logger._wandb_init.pop("anonymous", None)  # wandb warns of it, though it is None
        run: Any = logger.experiment
        self._remove_links()
        if mode in _OFFLINE:
            log.info("wandb sync %s", shlex.quote(str(Path(run.dir).parent)))
        else:
            log.info("wandb: %s", run.url)
        return logger

    def send_text(self, tag: str, text: str, step: int) -> None:
        """Adds a table of one cell, which shows the text as it is."""
        self._logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)

    def end(self, *, is_whole: bool) -> None:
        """Waits until all is sent."""
        self._logger.experiment.finish(exit_code=0 if is_whole else 1)
        self._remove_links()

    def _remove_links(self) -> None:
        """Removes links to logs of the package elsewhere, with which no run could be resumed."""
        top = self.run_dir.resolve()
        for path in self.run_dir.glob("wandb/**/*"):
            if path.is_symlink() and not path.resolve().is_relative_to(top):
                path.unlink()
