"""Checkpoint files: whole or absent, and read without executing anything."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.files import replacing, sync
from xftrain.run_folder import run_id_of
from xftrain.training.checkpoint_header import run_id

_KEYS: dict[str, type] = {
    "xftrain": Mapping,
    "state_dict": Mapping,
    "global_step": int,
    "pytorch-lightning_version": str,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": Mapping,
    "callbacks": Mapping,
}

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

        Args:
            checkpoint: what to save.
            path: its place.
            storage_options: `{"previous": name}` keeps the file that was there under that name.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if storage_options and path.exists():
                    _link(path, path.with_name(storage_options["previous"]))
            sync(path.parent)  # a rename is to outlast a power cut
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer
            if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                raise
            raise RunError(
                f"the checkpoint {path} could not be written ({first_line(error)}): free space on "
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


def _link(path: Path, other: Path) -> None:
    """The file under another name as well; without a moment at which it has none."""
    try:
        with replacing(other) as partial:
            partial.unlink(missing_ok=True)
            partial.hardlink_to(path)
    except OSError as error:  # a file system without links
        log.warning("%s is not kept: %s", other.name, error)


def sweep_partial_files(folder: Path) -> None:
    """Removes what writers left that were killed; nobody else writes in the folder of a run."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def export_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """The weights alone as safetensors, whole or absent; tied ones once, under their first name.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    first: dict[int, str] = {}
    for name, tensor in weights.items():
        first.setdefault(tensor.data_ptr(), name)
    once = {name: weights[name].detach().contiguous() for name in first.values()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(once, partial, {"format": "pt"})
            # safetensors lets the file's owner alone read it
            partial.chmod(path.parent.stat().st_mode & 0o666)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the weights {path} could not be written ({first_line(error)}): free space on its "
            "disk; the checkpoints are untouched."
        ) from error


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
    # by the times that they hold: a copy of the folder has others
    files = [path for path in run_dir.glob("checkpoints/*.ckpt") if _is_of(run_dir, path)]
    files.sort(key=_age)
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


def _is_of(run_dir: Path, path: Path) -> bool:
    """Whether it is of the run that the folder holds, as far as both name their run."""
    named = {run_id_of(run_dir), run_id(path)} - {None}
    if len(named) > 1:
        log.warning("ckpt=auto: skipped: %s is of another run than %s holds", path, run_dir)
    return len(named) < 2


def _age(path: Path) -> tuple[float, float]:
    """When a checkpoint was saved, as it says itself, without a look at its weights.

    Infinite where it cannot be read: such a file comes first, to be said to be skipped.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return float(held["xftrain"].get("saved_at", 0)), path.stat().st_mtime
    except Exception:  # unpickling can raise anything
        return math.inf, 0.0


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
            f"ckpt={path} cannot be read ({first_line(error)}): it is damaged or no checkpoint of "
            "xftrain; give another one."
        ) from error
    if not isinstance(loaded, dict) or not _is_ours(loaded):
        raise ConfigError(f"ckpt={path} is no checkpoint of xftrain: give a .ckpt file of a run.")
    return loaded


def _is_ours(loaded: Mapping[str, Any]) -> bool:
    right = all(isinstance(loaded.get(key), kind) for key, kind in _KEYS.items())
    return (
        right
        and isinstance(loaded["xftrain"].get("config"), Mapping)
        and all(isinstance(weight, Tensor) for weight in loaded["state_dict"].values())
    )
