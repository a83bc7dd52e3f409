"""Refuses option files that would exhaust memory or time when Hydra reads them.

Importing this module makes Hydra check each file that it reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from xftrain.errors import ConfigError

_MAX_BYTES = 16 << 20  # maximum size of a file
# A number that PyYAML parses in time quadratic in its length.
_LONG_NUMBER = re.compile(rb"[0-9](?:[0-9_]{0,99}:[0-9_]){20}").search
_MAX_VALUES = 100_000  # maximum number of values of a file, with its aliases expanded


def refuse_yaml_bombs(folders: Sequence[Path]) -> None:
    """Refuses pipes, huge files, and files whose aliases expand to a huge value.

    Args:
        folders: the folders of `--config-dir` and `--config-path`; missing ones are ignored.

    Raises:
        ConfigError: names the first such file.
    """
    for folder in folders:
        for path in _option_files(folder):
            if path.exists() and not path.is_dir():
                _check(path)


def _option_files(folder: Path) -> Iterator[Path]:
    """Yields the files that Hydra could read; like Hydra, it follows links to folders."""
    known: set[tuple[int, int]] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in known:  # visited already, or a link to a parent folder
            folders.clear()
            continue
        known.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(path, name) for name in sorted(files) if name.endswith((".yaml", ".yml")))


def _check(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{path} is neither a file nor a folder: remove it or name another one.")
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{path} must have at most {_MAX_BYTES >> 20} MiB, as options do.")
    content = path.read_bytes()
    if _LONG_NUMBER(content):
        raise ConfigError(f"{path} has a number in base 60 of many digits: put it in quotes.")
    if b"&" not in content or b"*" not in content:
        return
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        num_values = 0 if root is None else _num_values(root, {})
    except (yaml.YAMLError, ValueError):
        return  # Hydra reports the error, if it reads this file
    except RecursionError:
        num_values = _MAX_VALUES + 1
    if num_values > _MAX_VALUES:
        raise ConfigError(
            f"{path} has aliases that refer to themselves or expand to more than {_MAX_VALUES:,} "
            "values: write the values out."
        )


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the values below a node, an alias as often as it is used.

    Args:
        node: a node of the document, in which an alias is the node that it refers to.
        known: counts by identity of a node; a node that is being counted refers to itself.

    Raises:
        RecursionError: the node is nested too deeply or refers to itself.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    return known[id(node)]


_load = ConfigRepository.load_config


def _load_checked(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Hydra's reader of option files, also of the folders that `hydra.searchpath` names."""
    name = config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is not None and source.scheme() == "file":
        _check(Path(source.path, name))
    return _load(self, config_path)


setattr(ConfigRepository, "load_config", _load_checked)  # noqa: B010
