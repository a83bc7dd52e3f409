"""Moves the files of a sweep aside when another sweep starts in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

from xftrain.errors import SweepRefused
from xftrain.folders.run_folder import make_former_folder

log = logging.getLogger(__name__)

# Files of a sweep in its folder itself; each job sets its own former run aside.
_FILES = (
    "summary.csv",
    "summary.md",
    "summary.png",
    "events.out.tfevents.*.sweep",
    "multirun.yaml",
    "optimization_results.yaml",
    ".jobs",
    ".sweep.json",  # last, since it marks the folder of a sweep
)


def former_files(folder: Path) -> list[Path]:
    """The files of an earlier sweep in a folder, which another one would replace."""
    paths = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    return [path for path in paths if path.is_dir() == (path.name == ".jobs")]


def set_former_sweep_aside(folder: Path) -> None:
    """Moves the files of an earlier sweep into a subfolder, `former-1` and so on.

    Raises:
        SweepRefused: the files cannot be moved.
    """
    files = former_files(folder)
    if not any(path.is_file() for path in files):
        return
    try:
        former = make_former_folder(folder)
        for path in files:
            path.rename(former / path.name)
    except OSError as error:
        raise SweepRefused(
            f"hydra.sweep.dir={folder} holds the files of another sweep, which could not be moved "
            f"({error}): choose another hydra.sweep.dir."
        ) from error
    names = ", ".join(path.name for path in files)
    log.info("the former sweep's files are in %s now: %s", former, names)
