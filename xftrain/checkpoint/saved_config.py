"""Limits the size of the description of a run in a checkpoint, which may come from anyone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xftrain.checkpoint.plain_values import NotPlain

_MAX_KEY, _MAX_DOTTED = 200, 1000  # characters of a key, and of a dotted key
_MAX_CONFIG = 1 << 20  # characters of all values with dotted keys; a run has a few thousand
_NUMBER_CHARACTERS = 8  # characters counted for a number
_MAX_NAME = 1000  # characters of the name of an environment variable
_DIGEST = re.compile(r"[0-9a-f]{3}")  # as `redaction.digests` makes them


def check_description(entry: Mapping[str, Any]) -> None:
    """Refuses a configuration that is large with dotted keys, and malformed digests.

    Args:
        entry: the checkpoint's own entry, `xftrain`.

    Raises:
        NotPlain: the description is too large or malformed.
    """
    _refuse_large(entry.get("config"), "", 0)
    environment = entry.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(name, str)
        and len(name) <= _MAX_NAME
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest)
        for name, digest in environment.items()
    ):
        raise NotPlain("its environment must map names to digests of three hexadecimal digits")


def _refuse_large(value: Any, key: str, num_before: int) -> int:
    """Returns `num_before` plus the characters of a value, and refuses too many."""
    total = num_before + len(key) + (len(value) if isinstance(value, str) else _NUMBER_CHARACTERS)
    if total > _MAX_CONFIG:
        raise NotPlain(f"its configuration has more than {_MAX_CONFIG:,} characters")
    if isinstance(value, dict):
        for name, child in value.items():
            if len(str(name)) > _MAX_KEY or len(key) > _MAX_DOTTED:
                raise NotPlain("its configuration has a key that is too long")
            total = _refuse_large(child, f"{key}.{name}", total)
    elif not isinstance(value, str | int | float | list | tuple | set | None):
        raise NotPlain(f"its configuration has a {type(value).__name__}")
    elif isinstance(value, list | tuple | set):
        for child in value:
            total = _refuse_large(child, "", total)
    return total
