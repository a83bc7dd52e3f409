"""Checkpoint files: whole or absent, and read without executing anything."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from xftrain.errors import ConfigError, RunError

_KEYS = {"xftrain", "state_dict", "global_step", "pytorch-lightning_version"}

log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the final place, flushes to the disk, then renames.

    Lightning's own goes through the temporary folder, which leaves half a file under the final
    name when that is another file system and the process dies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """A complete file at `path`, or the one that was there before.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer
            with suppress(OSError):
                partial.unlink()
            raise RunError(
                f"the checkpoint {path} could not be written ({_first_line(error)}): free space on "
                "its disk or choose another hydra.run.dir; the checkpoint before it is untouched."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`; tensors and plain values only, nothing is executed."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes the file."""
        Path(path).unlink(missing_ok=True)


def checkpoint_to_load(ckpt: str | None, run_dir: Path) -> Path | None:
    """The file to go on from: the path given, or for `auto` the newest valid one of the run.

    Raises:
        ConfigError: the file is damaged; for `auto`, every file of the run is.
    """
    if ckpt is None:
        return None
    if ckpt != "auto":
        read_checkpoint(ckpt)
        return Path(ckpt)
    files = sorted(run_dir.glob("checkpoints/*.ckpt"), key=lambda f: f.stat().st_mtime_ns)
    if not files:
        log.info("ckpt=auto: no checkpoint in %s yet, starting at step 0", run_dir)
        return None
    for path in reversed(files):
        try:
            step = read_checkpoint(path)["global_step"]
        except ConfigError as error:
            log.warning("ckpt=auto: skipped: %s", error)
        else:
            log.info("ckpt=auto: going on from %s, step %d", path, step)
            return path
    raise ConfigError(
        f"ckpt=auto found {len(files)} checkpoint(s) in {run_dir / 'checkpoints'} and none can be "
        "read: give the path of a good one, or another hydra.run.dir to start afresh."
    )


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint file as a dictionary.

    Raises:
        ConfigError: there is no such file, or it is damaged or holds more than plain values.
    """
    if not Path(path).is_file():
        raise ConfigError(f"ckpt={path} is not a file: give the path of a .ckpt file of a run.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no sums
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {bad}")
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise ConfigError(
            f"ckpt={path} cannot be read ({_first_line(error)}): it is damaged or no checkpoint of "
            "xftrain; give another one."
        ) from error
    if not isinstance(loaded, dict) or not _KEYS <= loaded.keys():
        raise ConfigError(f"ckpt={path} is no checkpoint of xftrain: give a .ckpt file of a run.")
    return loaded


def refuse_other_model(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of two state dicts.

    Raises:
        ConfigError: they are not of the same model.
    """
    shapes = [
        {name: list(value.shape) for name, value in weights.items()} for weights in (saved, ours)
    ]
    differ = [n for n in {**saved, **ours} if shapes[0].get(n) != shapes[1].get(n)]
    if differ:
        there, here = (named.get(differ[0], "absent") for named in shapes)
        raise ConfigError(
            f"ckpt holds another model: {len(differ)} of its tensors differ from this one's, first "
            f"{differ[0]}, {there} there and {here} here; set model as in its run's config.yaml."
        )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def describe_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, as `optim.lr 0.003 -> 1e-05`; `ckpt` itself is no difference."""
    before, after = (flat(config) for config in (saved, current))
    return [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "ckpt"
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:  # a tuple is saved as it is and typed as a list
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
