"""Compares a job of a sweep with the other jobs, on all of its ranks."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from xftrain.commands.result_file import is_multirun_job
from xftrain.commands.sweep_data import multirun_dir, refuse_other_data
from xftrain.errors import ConfigError
from xftrain.train import distributed
from xftrain.utils.processes import rank


def compare_in_sweep(run_dir: Path, data_digest: str | None) -> None:
    """Refuses a job of a sweep whose data differs from that of other jobs; ignores other runs.

    Args:
        run_dir: the job's folder.
        data_digest: the digest of its data; None if the data has none.

    Raises:
        ConfigError: another job with the same options of data had other content; on all ranks.
    """
    if not is_multirun_job():
        return
    message = None
    try:
        if rank() == 0:
            refuse_other_data(multirun_dir(HydraConfig.get()), run_dir, data_digest)
    except ConfigError as error:
        message = str(error)
    if message := distributed.broadcast_from_rank_0(message):
        raise ConfigError(message)
