"""Finds the checkpoint that `ckpt=auto` resumes: the newest one, by its recorded time."""

from __future__ import annotations

import logging
from pathlib import Path

from xftrain.checkpoint.file import read_checkpoint
from xftrain.checkpoint.header import checkpoints_in, run_id, summary
from xftrain.checkpoint.plain_values import MAX_TIME_NS
from xftrain.errors import ConfigError
from xftrain.folders.run_folder import run_id_of

_UNREADABLE = MAX_TIME_NS + 1
log = logging.getLogger(__name__)


def checkpoint_to_load(ckpt: str | None, run_dir: Path) -> Path | None:
    """The checkpoint to resume: the given path, or for `auto` the newest valid one of the run.

    Raises:
        ConfigError: the file is damaged; for `auto`, every file of the run is.
    """
    if ckpt is None:
        return None
    if ckpt != "auto":
        read_checkpoint(ckpt)
        return Path(ckpt)
    # by recorded time, as file times change in a copy of the folder
    files = [
        path for path in checkpoints_in(run_dir / "checkpoints") if _belongs_to_run(run_dir, path)
    ]
    files.sort(key=_recency)
    if not files:
        log.info("ckpt=auto: no checkpoint in %s yet, starting at step 0", run_dir)
        return None
    for path in reversed(files):
        try:
            step = read_checkpoint(path)["global_step"]
        except ConfigError as error:
            log.warning("ckpt=auto: skipped: %s", error)
        else:
            log.info("ckpt=auto: resuming from %s, step %d", path, step)
            return path
    raise ConfigError(
        f"ckpt=auto found {len(files)} checkpoint(s) in {run_dir / 'checkpoints'} and none can be "
        "read: give the path of a good one, or another hydra.run.dir to start afresh."
    )


def newest_save(run_dir: Path) -> int:
    """The recorded time of the newest checkpoint of a run in nanoseconds; 0 if there is none."""
    ages = (_recency(path) for path in checkpoints_in(run_dir / "checkpoints"))
    return max((saved_at for saved_at, _ in ages if saved_at < _UNREADABLE), default=0)


def _belongs_to_run(run_dir: Path, path: Path) -> bool:
    """Whether a checkpoint belongs to the run of the folder; true if either has no run id."""
    named = {run_id_of(run_dir), run_id(path)} - {None}
    if len(named) > 1:
        log.warning("ckpt=auto: skipped: %s belongs to another run than %s holds", path, run_dir)
    return len(named) < 2


def _recency(path: Path) -> tuple[int, int]:
    """The recorded time and the step of a checkpoint, read without its weights.

    An unreadable checkpoint sorts first, so that the log names it.
    """
    age = summary(path).recency
    return (_UNREADABLE, 0) if age is None else age
