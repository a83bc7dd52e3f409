"""Checkpoint files, which are complete or absent, and are read without executing code."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO

from xftrain.checkpoint.described import check_loaded
from xftrain.checkpoint.file_format import check_sums, described_content
from xftrain.checkpoint.plain_pickle import DescribedTensor
from xftrain.checkpoint.plain_values import NotPlain, is_count, is_time
from xftrain.checkpoint.saved_config import check_description
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.utils.files import NotPlainFile, open_plain, real_path, replacing, sync
from xftrain.utils.printable import one_line

_MAX_COUNTS = 10_000
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


class UnsavableState(RunError):
    """The state of a user's class is more than tensors and plain values."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file beside the target, flushes it to disk, then renames it.

    Lightning's own class writes to the system's temporary folder. If that is another file system
    and the process dies, a partial file remains under the final name.
    """

    def __init__(self) -> None:
        self._saved_to: set[Path] = set()  # folders, without links

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a complete file to `path`; on an error, the previous file remains.

        Args:
            checkpoint: content of the checkpoint.
            path: path of the file.
            storage_options: `{"previous": name}` keeps the previous file under that name.

        Raises:
            UnsavableState: no run could resume from the file.
            RunError: the disk is full, or the folder cannot be written.
        """
        path = Path(path)
        written: _RecordingFile | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._saved_to.add(path.parent.resolve())
            with replacing(path) as partial:
                with _RecordingFile(partial) as written:
                    torch.save(checkpoint, written)
                    written.flush()
                    os.fsync(written.fileno())
                _check_readable(partial)
                previous = storage_options and storage_options.get("previous")
                if previous and path.exists():
                    _link(path, path.with_name(previous))
            sync(path.parent)  # the rename must survive a power failure
        except NotPlain as error:
            raise UnsavableState(
                f"the checkpoint {path} is discarded, as it could not be read again ({error}): let "
                "state_dict() of your own callbacks and optimizers return tensors and plain values."
            ) from error
        except Exception as error:
            # torch replaces the error of the system by its own error, with various messages
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
        """Reads a checkpoint, of tensors and plain values only, into host memory."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint of a folder that this run saves to.

        A callback reads the paths to delete from the resumed checkpoint, which is untrusted.
        """
        file = Path(path)
        is_own = file.suffix == ".ckpt" and file.parent.resolve() in self._saved_to
        if is_own and not file.is_symlink():
            file.unlink(missing_ok=True)
        else:
            log.warning("%s is not deleted: this run saves no checkpoints there", file)


class _RecordingFile(io.BufferedWriter):
    """A file that records the error of the system if a write fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Writes the whole content."""
        with self._recording():
            return super().write(content)

    def flush(self) -> None:
        """Writes the rest of the buffer."""
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
    """Refuses a file that no run could resume from, for example due to a user's class."""
    with open_plain(path) as file:
        content = described_content(file)
    if isinstance(content, dict) and "xftrain" in content:
        try:
            checked_content(content)
        except _WrongLayout:
            raise NotPlain("it is not laid out as a checkpoint of xftrain") from None


def _link(path: Path, other: Path) -> None:
    """Links the file to a second name, atomically, so that this name always exists."""
    if other.exists() and other.samefile(path):  # after a kill before the rename
        return  # renaming to a link of the same file does nothing, and keeps both
    try:
        with replacing(other) as partial:
            partial.unlink(missing_ok=True)
            partial.hardlink_to(path)
    except OSError as error:  # the file system has no hard links
        log.warning("%s is not kept: %s", other.name, error)


def remove_partial_files(folder: Path) -> None:
    """Removes the temporary files of killed processes; no other process writes to a run folder."""
    for path in folder.glob(".*.partial"):
        with suppress(IsADirectoryError, PermissionError):  # not a file of this package
            path.unlink(missing_ok=True)


def read_checkpoint(path: str | Path, key: str = "ckpt") -> dict[str, Any]:
    """Reads a checkpoint file as a dictionary, with tensors in host memory.

    Args:
        path: the file, which is untrusted.
        key: the override that names it, for messages.

    Raises:
        ConfigError: the file is missing or damaged, or holds more than tensors and plain values.
    """
    with _opened(Path(path), key) as file:
        described = checked_content(described_content(file))
        file.seek(0)
        check_sums(file)
        file.seek(0)
        loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        check_loaded(loaded, described)
    return loaded


def described_checkpoint(path: Path, key: str = "ckpt") -> Mapping[str, Any]:
    """Reads a checkpoint file without its tensors, for each of which it has a `DescribedTensor`.

    The result must not be changed.

    Raises:
        ConfigError: as `read_checkpoint`, except for damage within the tensors.
    """
    with _opened(path, key) as file:
        return checked_content(described_content(file))


@contextmanager
def _opened(path: Path, key: str) -> Iterator[IO[bytes]]:
    """Opens an untrusted checkpoint file, and explains any error of the block that reads it."""
    if path.is_symlink():
        target = real_path(path) or "not of a link"
        raise ConfigError(f"{key}={path} is a link: give the path of the file, {target}.")
    try:
        with open_plain(path) as file:
            yield file
    except _WrongLayout:
        raise ConfigError(
            f"{key}={path} is no checkpoint of xftrain: give a .ckpt file of a run."
        ) from None
    except (FileNotFoundError, IsADirectoryError, NotPlainFile) as error:
        raise ConfigError(
            f"{key}={path} is not a file: give the path of a .ckpt file of a run."
        ) from error
    except Exception as error:  # torch can raise anything
        raise ConfigError(
            f"{key}={path} cannot be read ({one_line(first_line(error))}): it is damaged or no "
            "checkpoint of xftrain; give another one."
        ) from error


class _WrongLayout(ValueError):
    """A file written by torch.save is not a checkpoint of xftrain."""


def checked_content(content: Any) -> dict[str, Any]:
    """Returns the content of a checkpoint after checking its layout.

    Raises:
        _WrongLayout: it is not laid out as a checkpoint of xftrain.
        NotPlain: its description of the run is too large or malformed.
    """
    if not isinstance(content, dict):
        raise _WrongLayout
    right = all(isinstance(content.get(key), kind) for key, kind in _KEYS.items())
    if not (
        right
        and isinstance(content["xftrain"].get("config"), dict)
        and all(isinstance(weight, DescribedTensor) for weight in content["state_dict"].values())
        and is_count(content["global_step"])
        and is_time(content["xftrain"].get("saved_at", 0))
        and is_count(content["xftrain"].get("num_skipped", 0))
        and _holds_counts(content["loops"])
    ):
        raise _WrongLayout
    check_description(content["xftrain"])
    return content


def _holds_counts(loops: Any) -> bool:
    """Whether all values are flags or counts; a run has about a hundred of them.

    One container may be referenced many times, so that the values outnumber the file's bytes.
    """
    todo, num_values = [loops], 0
    while todo:
        value = todo.pop()
        num_values += 1
        if num_values + len(todo) > _MAX_COUNTS:
            return False
        if isinstance(value, dict):
            todo += islice(value.values(), _MAX_COUNTS)
        elif isinstance(value, list | tuple):
            todo += value[:_MAX_COUNTS]
        elif type(value) is not bool and not is_count(value):
            return False
    return True
