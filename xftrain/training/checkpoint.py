"""Checkpoint files: whole or absent, and read without executing anything."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.files import NotPlainFile, open_plain, real_path, replacing, sync
from xftrain.printable import one_line
from xftrain.training.checkpoint_format import check_sums, described_content
from xftrain.training.described import check_loaded
from xftrain.training.plain_pickle import DescribedTensor
from xftrain.training.plain_values import NotPlain, is_count, is_time
from xftrain.training.saved_config import check_description

_KEYS: dict[str, type] = {
    "xftrain": dict,
    "state_dict": dict,
    "global_step": int,
    "pytorch-lightning_version": str,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
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
        written: _RecordingFile | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                with _RecordingFile(partial) as written:
                    torch.save(checkpoint, written)
                    written.flush()
                    os.fsync(written.fileno())
                _check_readable(partial)
                if storage_options and path.exists():
                    _link(path, path.with_name(storage_options["previous"]))
            sync(path.parent)  # a rename is to outlast a power cut
        except NotPlain as error:
            raise RunError(
                f"the checkpoint {path} is not kept, as it could not be read again ({error}): let "
                "state_dict() of your own callbacks and optimizers return tensors and plain values."
            ) from error
        except Exception as error:
            # torch puts an error of its own in the place of the system's, in several words
            cause = (written and written.error) or error
            if not isinstance(cause, OSError):
                raise
            raise RunError(
                f"the checkpoint {path} could not be written ({first_line(cause)}): free space on "
                "its disk or choose another hydra.run.dir; the checkpoint before it is untouched."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, in host memory; tensors and plain values only."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes the file."""
        Path(path).unlink(missing_ok=True)


class _RecordingFile(io.BufferedWriter):
    """A file that keeps the system's error where a write fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """All of it."""
        with self._recording():
            return super().write(content)

    def flush(self) -> None:
        """All that is left."""
        with self._recording():
            super().flush()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def _check_readable(path: Path) -> None:
    """Refuses what no run could resume from, as state of a class of the user's own may be."""
    with open_plain(path) as file:
        content = described_content(file)
    if isinstance(content, dict) and "xftrain" in content:
        try:
            checked_content(content)
        except _NotOurs:
            raise NotPlain("it is not laid out as a checkpoint of xftrain") from None


def _link(path: Path, other: Path) -> None:
    """The file under another name as well; without a moment at which it has none."""
    if other.exists() and other.samefile(path):  # as after a kill between here and the rename
        return  # a rename between names of one file does nothing, and leaves both
    try:
        with replacing(other) as partial:
            partial.unlink(missing_ok=True)
            partial.hardlink_to(path)
    except OSError as error:  # a file system without links
        log.warning("%s is not kept: %s", other.name, error)


def sweep_partial_files(folder: Path) -> None:
    """Removes what writers left that were killed; nobody else writes in the folder of a run."""
    for path in folder.glob(".*.partial"):
        with suppress(IsADirectoryError, PermissionError):  # none of ours
            path.unlink(missing_ok=True)


def export_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """The weights alone as safetensors, whole or absent; tied ones once, under their first name.

    The file's metadata names the first for each of the others, as `save_model` of safetensors does.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    first: dict[tuple[int, torch.Size], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in weights.items():
        if (kept := first.setdefault((tensor.data_ptr(), tensor.shape), name)) != name:
            tied[name] = kept
    once = {name: weights[name].detach().contiguous() for name in first.values()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(once, partial, {"format": "pt", **tied})
            # safetensors lets the file's owner alone read it
            partial.chmod(path.parent.stat().st_mode & 0o666)
            sync(partial)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the weights {path} could not be written ({first_line(error)}): free space on its "
            "disk; the checkpoints are untouched."
        ) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint file as a dictionary, its tensors in host memory.

    Raises:
        ConfigError: there is no such file, or it is damaged or holds more than plain values.
    """
    path = Path(path)
    if path.is_symlink():
        place = real_path(path) or "not of a link"
        raise ConfigError(f"ckpt={path} is a link: give the path of the file, {place}.")
    try:
        with open_plain(path) as file:
            described = checked_content(described_content(file))
            file.seek(0)
            check_sums(file)
            file.seek(0)
            loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        check_loaded(loaded, described)
    except _NotOurs:
        raise ConfigError(
            f"ckpt={path} is no checkpoint of xftrain: give a .ckpt file of a run."
        ) from None
    except (FileNotFoundError, IsADirectoryError, NotPlainFile) as error:
        raise ConfigError(
            f"ckpt={path} is not a file: give the path of a .ckpt file of a run."
        ) from error
    except Exception as error:  # torch can raise anything
        raise ConfigError(
            f"ckpt={path} cannot be read ({one_line(first_line(error))}): it is damaged or no "
            "checkpoint of xftrain; give another one."
        ) from error
    return loaded


class _NotOurs(ValueError):
    """A file of torch.save that holds something else."""


def checked_content(content: Any) -> dict[str, Any]:
    """The content of a checkpoint, if it is laid out as xftrain saves it.

    Raises:
        _NotOurs: it is not.
        NotPlain: what it says of its run is too large, or none.
    """
    if not isinstance(content, dict):
        raise _NotOurs
    right = all(isinstance(content.get(key), kind) for key, kind in _KEYS.items())
    if not (
        right
        and isinstance(content["xftrain"].get("config"), dict)
        and all(isinstance(weight, DescribedTensor) for weight in content["state_dict"].values())
        and is_count(content["global_step"])
        and is_time(content["xftrain"].get("saved_at", 0))
        and is_count(content["xftrain"].get("num_skipped", 0))
        and all(type(value) is bool or is_count(value) for value in _leaves(content["loops"]))
    ):
        raise _NotOurs
    check_description(content["xftrain"])
    return content


def _leaves(value: Any) -> Iterator[Any]:
    """What is in a container and those within it."""
    if not isinstance(value, dict | list | tuple):
        yield value
        return
    for child in value.values() if isinstance(value, dict) else value:
        yield from _leaves(child)
