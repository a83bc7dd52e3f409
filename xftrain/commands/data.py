"""`--config-name data`: describes the data of a run without training, and shows packed rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.commands.data_report import DataReport
from xftrain.commands.prepare import prepare
from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.shown_rows import shown_rows
from xftrain.config.command_configs import DataConfig
from xftrain.config.compose import validate_as
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.train.same_data import digest_of
from xftrain.utils import redaction
from xftrain.utils.files import replacing

log = logging.getLogger(__name__)

PICTURE = "document_lengths.png"


def describe_data(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: DataConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Describes the data and returns the content of `result.json`; `metrics` has the figures.

    Args:
        cfg: what `xftrain.compose(config_name="data")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration is wrong, or cannot run on this machine.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, DataConfig.output)
    with recorded(RunFolder(run_dir, reserved=reserved)) as result:
        checked = checked or validate_as(DataConfig, cfg)
        if checked.trainer.devices > 1:
            raise ConfigError(
                "--config-name data shows the rows of one device, got trainer.devices="
                f"{checked.trainer.devices}: leave it at 1."
            )
        run = prepare(checked, redaction.without_secrets(cfg, checked.to_dict()), run_dir)
        report = DataReport(run.data)
        result["data_digest"] = digest_of(run.data)
        result["metrics"] = report.figures
        log.info("data: %s", report.line())
        if rows := report.table():
            log.info("sources and splits:\n%s", rows)
        log.info("the first rows of training:\n%s", shown_rows(run.data))
        if (figure := report.picture()) is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            with replacing(run_dir / PICTURE) as partial:
                figure.savefig(partial, format="png")
            log.info("picture of the lengths of documents: %s", run_dir / PICTURE)
    return result
