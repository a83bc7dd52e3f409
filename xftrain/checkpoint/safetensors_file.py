"""Safetensors files, which are written whole, and checked before a tensor of one is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xftrain.checkpoint.file_format import refuse_holes
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.utils.files import open_plain, replacing, sync
from xftrain.utils.printable import one_line, shortened

_LENGTH_BYTES = 8  # of the length of the header, at the beginning of the file
_MAX_HEADER = 16 << 20  # bytes; about 100 for each tensor
_MAX_NAME, _MAX_DIMS = 500, 8
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class _Entry(NamedTuple):
    """Where a tensor is in the file, from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a file by name; each is read when it is asked for.

    Args:
        path: the file, which is untrusted; it must not be a link.
        named: the override that names it, for messages.

    Raises:
        ConfigError: the file cannot be read, or is no safetensors file.
    """

    def __init__(self, path: Path, named: str) -> None:
        self._path, self._named = path, named
        try:
            self.tied, self._entries, self._data_at = _read_header(path)
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(error) from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor.

        Raises:
            ConfigError: the file has become shorter, or the tensor is not of floats.
        """
        entry = self._entries[name]
        dtype = _FLOATS.get(entry.dtype)
        if dtype is None:
            raise ConfigError(
                f"{self._named}: {one_line(name)} has numbers of the type "
                f"{one_line(entry.dtype)[:20]}, and must have one of {', '.join(_FLOATS)}."
            )
        num_bytes = entry.end - entry.begin
        content = torch.empty(num_bytes, dtype=torch.uint8)
        try:
            with open_plain(self._path) as file:
                file.seek(self._data_at + entry.begin)
                if file.readinto(memoryview(content.numpy())) != num_bytes:  # type: ignore[attr-defined, arg-type]
                    raise ValueError("it has become shorter while it was read")
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return content.view(dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        """The names of all tensors."""
        return iter(self._entries)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._entries)

    def _unreadable(self, error: Exception) -> ConfigError:
        reason = getattr(error, "strerror", None) or shortened(one_line(str(error)), 200)
        return ConfigError(
            f"{self._named}: {one_line(self._path.name)} cannot be read ({reason}): it is damaged "
            "or no safetensors file; give another one."
        )


def export_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes the weights as safetensors, atomically; tied weights once, under their first name.

    The metadata maps each other name to the first one, as `save_model` of safetensors does.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    first: dict[tuple[int, torch.Size], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in weights.items():
        if (original := first.setdefault((tensor.data_ptr(), tensor.shape), name)) != name:
            tied[name] = original
    once = {name: weights[name].detach().contiguous() for name in first.values()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(once, partial, {"format": "pt", **tied})
            # safetensors makes the file readable by its owner only
            partial.chmod(path.parent.stat().st_mode & 0o666)
            sync(partial)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the weights {path} could not be written ({first_line(error)}): free space on its "
            "disk; the checkpoints are untouched."
        ) from error


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, _Entry], int]:
    """The tied names with the names that they repeat, the tensors, and the offset of the data.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file; the message says why.
    """
    with open_plain(path) as file:
        length = file.seek(0, 2)
        file.seek(0)
        num_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        data_at = _LENGTH_BYTES + num_bytes
        if length < _LENGTH_BYTES or num_bytes > _MAX_HEADER or data_at > length:
            raise ValueError(f"its header is said to have {num_bytes:,} bytes")
        content: Any = json.loads(file.read(num_bytes).decode("utf-8"))
        refuse_holes(file, length)
    if not isinstance(content, dict):
        raise ValueError("its header is no mapping")
    metadata = content.pop("__metadata__", {})
    entries = {name: _entry(name, value) for name, value in content.items()}
    at = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != at:
            raise ValueError("its tensors overlap, or have gaps between them")
        at = entry.end
    if data_at + at != length:
        raise ValueError(f"its tensors end at byte {data_at + at:,}, and the file at {length:,}")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    tied = {name: value for name, value in pairs if isinstance(value, str) and value in entries}
    return tied, entries, data_at


def _entry(name: str, value: Any) -> _Entry:
    """A checked entry of the header."""
    wrong = ValueError(f"its entry {one_line(name)[:100]} describes no tensor")
    if len(name) > _MAX_NAME or not isinstance(value, dict):
        raise wrong
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets):
        raise wrong
    if len(shape) > _MAX_DIMS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong
    entry = _Entry(dtype, tuple(shape), *offsets)
    size = _FLOATS[dtype].itemsize if dtype in _FLOATS else None
    if size is not None and math.prod(entry.shape) * size != entry.end - entry.begin:
        raise wrong
    return entry


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 62 for value in values
    )
