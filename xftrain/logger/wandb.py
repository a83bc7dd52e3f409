"""Logs to Weights & Biases, online or in a folder of the run."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from xftrain.errors import RunError
from xftrain.train.tracker import Tracker
from xftrain.utils.working_folder import hidden_working_folder

log = logging.getLogger(__name__)

_OFFLINE = ("offline", "dryrun", "disabled")  # values of WANDB_MODE
# Environment variables that name files of wandb.
_VARIABLES = (
    "WANDB_CONFIG_DIR",
    "WANDB_CACHE_DIR",
    "WANDB_DATA_DIR",
    "WANDB_ARTIFACT_DIR",
    "NETRC",
)
_DEFAULTS = "config-defaults.yaml"  # in the working folder


class WandB(Tracker):
    """A run of Weights & Biases that holds the metrics, the configuration and a sample.

    The package records nothing else: no console output, no command line, no git state.

    Args:
        run_dir: the run's folder, in which `wandb/` is made.
        project: the project on the server.
        run_name: the name of the run there; None is the name of the run's folder.
        entity: the user or team on the server; None is the logged-in user.
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
        self._sync_dir: Path | None = None

    def make(self) -> WandbLogger:
        """Creates Lightning's logger, and starts the run, online or offline.

        Raises:
            RunError: a file in the working folder would change the settings.
        """
        mode = "offline" if self.offline else os.environ.get("WANDB_MODE", "online")
        if mode in _OFFLINE:  # otherwise the package would send error reports over the network
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        _refuse_settings_file(wandb.Settings().settings_workspace)
        if os.path.lexists(_DEFAULTS):
            log.warning(
                "wandb: %s in the working folder is ignored: the run uses its own configuration.",
                _DEFAULTS,
            )
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            show_info=False,
            silent=mode in _OFFLINE,  # online, it prints a summary with links at the end
            symlink=False,
            use_dot_wandb=False,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        logger = WandbLogger(
            name=self.run_name,
            save_dir=self.run_dir.resolve(),
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=mode,
            settings=settings,
        )
        logger._wandb_init.pop("anonymous", None)  # wandb warns about it even if None
        with hidden_working_folder(_VARIABLES):
            run: Any = logger.experiment
        self._sync_dir = Path(run.settings.sync_dir)
        self._remove_links()
        if mode in _OFFLINE:
            log.info("wandb sync %s", shlex.quote(str(self._sync_dir)))
        else:
            log.info("wandb: %s", run.url)
        return logger

    def send_text(self, tag: str, text: str, step: int) -> None:
        """Logs a table of one cell, which shows the text unchanged."""
        self._logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)

    def end(self, *, is_whole: bool) -> None:
        """Ends the run, and waits until everything is sent."""
        self._logger.experiment.finish(exit_code=0 if is_whole else 1)
        self._remove_links()

    def _remove_links(self) -> None:
        """Removes links to the package's logs elsewhere, as runs with links cannot be resumed.

        It does so only in the folder that the package has made for this run.
        """
        for folder, folders, files in os.walk(self._sync_dir) if self._sync_dir else ():
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink():
                    path.unlink()


def _refuse_settings_file(path: str) -> None:
    """Raises an error for a settings file in the working folder, which the package would read.

    Such a file can set the server that receives the API key, the folders of files, and URLs that
    are queried for metrics of the machine. The package reads it offline too.

    Args:
        path: path of the file, as the package spells it.

    Raises:
        RunError: there is such a file.
    """
    if os.path.lexists(path):
        raise RunError(
            f"{path} may name another server and other folders, and the package reads it: move it "
            "to ~/.config/wandb/settings if it is yours, or remove it."
        )
