"""Reads and writes folders of models as `save_pretrained` of `transformers` lays them out.

A folder that is read may come from anyone: nothing in it is executed, no pickle is read, and no
file outside it is opened.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xftrain.checkpoint.safetensors_file import SafetensorsFile
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.utils.files import read_plain, real_path, refuse_escaping_path, sync
from xftrain.utils.printable import one_line, shortened

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_HEAD = "lm_head.weight"
# The prefix that names lack, by the name of the embedding that they then have.
_PREFIXES = {"wte.weight": "transformer.", "embed_tokens.weight": "model."}
_CONFIG_BYTES, _INDEX_BYTES = 4 << 20, 64 << 20
_MAX_SHARDS = 10_000
_SHARD_BYTES = 5 << 30  # of a file that is written; a larger tensor has a file of its own
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors", re.ASCII).fullmatch


class Weights(Mapping[str, Tensor]):
    """The weights of a folder by name; each is read when it is asked for.

    Files of a model without its output matrix, such as OpenAI's GPT-2, have names without the
    prefix of the model, which is added.

    Args:
        shards: the file of each weight.
    """

    def __init__(self, shards: Mapping[str, SafetensorsFile]) -> None:
        prefix = next((prefix for name, prefix in _PREFIXES.items() if name in shards), "")
        stored = {name if name == _HEAD else prefix + name: name for name in shards}
        self._shards = {name: (shards[there], there) for name, there in stored.items()}
        shapes = {id(shard): shard.shapes for shard in shards.values()}
        self.shapes = {name: shapes[id(shard)][key] for name, (shard, key) in self._shards.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Reads a weight."""
        shard, there = self._shards[name]
        return shard[there]

    def __iter__(self) -> Iterator[str]:
        """The names of all weights."""
        return iter(self._shards)

    def __len__(self) -> int:
        """The number of weights."""
        return len(self._shards)


@dataclass(frozen=True)
class HubFolder:
    """What a folder holds.

    Attributes:
        config: content of `config.json`, of which only the syntax is checked.
        weights: the weights, by the names of the class.
    """

    config: dict[str, Any]
    weights: Weights


def read_folder(path: Path, key: str = "init_from") -> HubFolder:
    """Reads the configuration and the shapes of the weights of a folder.

    Args:
        path: the folder, which is untrusted.
        key: the override that names it, for messages.

    Raises:
        ConfigError: files are missing or damaged, lie outside the folder, or are pickles.
    """
    named = f"{key}={one_line(str(path))}"
    refuse_escaping_path(path, named)
    config = _read_mapping(path, CONFIG, _CONFIG_BYTES, named)
    if "auto_map" in config:
        raise ConfigError(
            f"{named} has code of its own (auto_map in {CONFIG}), which is never run: give the "
            "folder of a class of transformers itself."
        )
    if (path / WEIGHTS).exists():
        file = SafetensorsFile(checked_file(path, WEIGHTS, named), named)
        return HubFolder(config, Weights(dict.fromkeys(file, file)))
    if not (path / INDEX).exists():
        pickles = sorted(one.name for one in path.glob("pytorch_model*.bin"))[:1]
        raise ConfigError(
            f"{named} has no {WEIGHTS}"
            + (f", but {one_line(pickles[0])}, a pickle, which is never read" if pickles else "")
            + ": save the model with save_pretrained, which writes safetensors."
        )
    return HubFolder(config, _sharded(path, named))


def _sharded(path: Path, named: str) -> Weights:
    """The weights of the files that the index names."""
    index = _read_mapping(path, INDEX, _INDEX_BYTES, named)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise ConfigError(f"{named}: {INDEX} has no weight_map of names to files: give another.")
    names = sorted(set(places.values()))
    if len(names) > _MAX_SHARDS:
        raise ConfigError(f"{named}: {INDEX} names {len(names):,} files: give another folder.")
    for name in names:
        if not _SHARD_NAME(name):
            raise ConfigError(
                f"{named}: {INDEX} names {shortened(one_line(repr(name)), 100)}, and only "
                "safetensors files of the folder itself are read."
            )
    shards = {name: SafetensorsFile(checked_file(path, name, named), named) for name in names}
    held = {(weight, name) for name, shard in shards.items() for weight in shard}
    if differing := held ^ set(places.items()):
        weight, name = min(differing)
        raise ConfigError(
            f"{named}: {INDEX} and the files differ in {len(differing)} weights, first "
            f"{one_line(weight)[:100]} of {name}: give a complete folder."
        )
    return Weights({weight: shards[name] for weight, name in places.items()})


def checked_file(folder: Path, name: str, named: str) -> Path:
    """The path, without links, of a file of an untrusted folder.

    A link may lead to another file of the folder, and in the cache of Hugging Face from
    `snapshots/<commit>` to `blobs`.

    Raises:
        ConfigError: the file is missing, or lies elsewhere.
    """
    top, real = real_path(folder), real_path(folder / name)
    allowed = [] if top is None else [top]
    if top is not None and top.parent.name == "snapshots":
        allowed.append(top.parent.parent / "blobs")
    if real is None or not any(real.is_relative_to(one) for one in allowed):
        raise ConfigError(
            f"{named}: {one_line(name)} is a link that leads out of the folder: replace it by the "
            "file itself if it is meant."
        )
    if not os.path.isfile(real):
        raise ConfigError(f"{named} has no file {one_line(name)}: give a complete folder.")
    return real


def _read_mapping(folder: Path, name: str, max_bytes: int, named: str) -> dict[str, Any]:
    """The mapping in a JSON file of an untrusted folder."""
    file = checked_file(folder, name, named)
    reason = "it is no mapping"
    try:
        found: Any = json.loads(read_plain(file, max_bytes).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = None
        reason = getattr(error, "strerror", None) or shortened(one_line(str(error)), 100)
    if not isinstance(found, dict):
        raise ConfigError(f"{named}: {name} cannot be read ({reason}): give another folder.")
    return found


def write_folder(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    files: Mapping[str, str] | None = None,
    *,
    key: str = "path",
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a folder, which is complete or absent.

    Args:
        path: the folder, which must be new or empty.
        config: content of `config.json`.
        weights: the weights by the names of the class.
        files: text of other files, by their names, such as `tokenizer.json`.
        key: the override that names the folder, for messages.
        shard_bytes: maximum size of the tensors of one file; more is split, with an index.

    Raises:
        ConfigError: the folder is not empty, or leads out of the working folder by a link.
        RunError: the disk is full, or the folder cannot be written.
    """
    named = f"{key}={one_line(str(path))}"
    refuse_escaping_path(path, named)
    try:
        is_taken = path.is_symlink() or (path.exists() and (path.is_file() or any(path.iterdir())))
        if is_taken:
            raise ConfigError(f"{named} must be a new or empty folder: choose another one.")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        partial.mkdir()
        try:
            _write_all(partial, config, weights, files or {}, shard_bytes)
            partial.rename(path)  # replaces an empty folder, and no other
        except BaseException:  # a signal too
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{named} could not be written ({first_line(error)}): free space on its disk or choose "
            "another folder."
        ) from error


def _write_all(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    files: Mapping[str, str],
    shard_bytes: int,
) -> None:
    """Writes all files of a folder, and flushes them to disk."""
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", **files}
    shards = _shards(weights, shard_bytes)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        places = {weight: name for name, own in zip(names, shards, strict=True) for weight in own}
        total = sum(weight.nbytes for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        texts[INDEX] = json.dumps(index, indent=2) + "\n"
    for name, own in zip(names, shards, strict=True):
        content = {weight: weights[weight].detach().contiguous() for weight in own}
        save_file(content, folder / name, {"format": "pt"})
        # safetensors makes the file readable by its owner only
        os.chmod(folder / name, folder.stat().st_mode & 0o666)
        sync(folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        sync(folder / name)
    sync(folder)


def _shards(weights: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """The names of the weights of each file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        if shards[-1] and size + weight.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weight.nbytes
    return shards
