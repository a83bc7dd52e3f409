"""Checks that paths of text exist."""

from __future__ import annotations

import glob
import os

from xftrain.errors import ConfigError
from xftrain.utils.files import expand_home


def existing_paths(key: str, named: str | list[str]) -> str | list[str]:
    """Expands `~` in a path, a glob or each path of a list, and refuses paths that do not exist.

    Raises:
        ConfigError: names the key and the path.
    """
    if not isinstance(named, str):
        return [str(existing_paths(key, one)) for one in named]
    path = expand_home(key, named)
    if not named or not (os.path.exists(path) or glob.has_magic(named)):
        raise ConfigError(f"{key} must be an existing file or folder, got {named!r}.")
    return str(path)
