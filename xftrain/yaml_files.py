"""Checks of a folder of options before Hydra reads it: files that would exhaust the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from xftrain.errors import ConfigError

_MAX_BYTES = 16 << 20  # of one file
# What PyYAML makes a number of, in time that grows with the square of its length.
_LONG_NUMBER = re.compile(rb"[0-9](?:[0-9_]{0,99}:[0-9_]){20}").search
_MAX_VALUES = 100_000  # of one file, once its aliases are written out


def refuse_yaml_bombs(folders: Sequence[Path]) -> None:
    """Refuse a pipe, an enormous file, and one whose aliases multiply to an enormous value.

    Args:
        folders: of `--config-dir` and `--config-path`; one that is not there is no fault here.

    Raises:
        ConfigError: the first such file.
    """
    for folder in folders:
        for path in _option_files(folder):
            if path.exists() and not path.is_dir():
                _check(path)


def _option_files(folder: Path) -> Iterator[Path]:
    """The files that Hydra could read, which follows links to folders as well."""
    known: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in known:  # a link to a folder above it, or seen already
            folders.clear()
            continue
        known.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(place, name) for name in sorted(files) if name.endswith((".yaml", ".yml")))


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
        return  # Hydra says what is wrong, if it reads this file
    except RecursionError:
        num_values = _MAX_VALUES + 1
    if num_values > _MAX_VALUES:
        raise ConfigError(
            f"{path} has aliases that refer to themselves or come to more than {_MAX_VALUES:,} "
            "values: write the values out."
        )


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, each alias counted as often as it is used.

    Args:
        node: of the document, in which an alias is the node that it refers to.
        known: by the identity of a node; one that is being counted refers to itself.

    Raises:
        RecursionError: it is nested too deeply, or without end.
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
