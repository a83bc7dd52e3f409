"""What a checkpoint says of its run is small, whoever made it: it is compared, shown and copied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xftrain.training.plain_values import NotPlain

_MAX_KEY, _MAX_DOTTED = 200, 1000  # characters of a key, and with all groups that it is in
_MAX_CONFIG = 1 << 20  # characters, all values with their dotted keys; a run has some thousand
_VALUE = 8  # characters, of a number
_MAX_NAME = 1000  # of a variable of the environment
_DIGEST = re.compile(r"[0-9a-f]{3}")  # as `redaction.digests` makes them


def check_description(held: Mapping[str, Any]) -> None:
    """Refuses a configuration that is large once its keys are dotted, and digests that are none.

    Args:
        held: the checkpoint's own entry, `xftrain`.

    Raises:
        NotPlain: what is wrong with it.
    """
    _refuse_large(held.get("config"), "", 0)
    environment = held.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(name, str)
        and len(name) <= _MAX_NAME
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest)
        for name, digest in environment.items()
    ):
        raise NotPlain("its environment is not one of names and digests of three digits")


def _refuse_large(value: Any, key: str, num_before: int) -> int:
    """Adds the characters of a value to those of the values before it."""
    total = num_before + len(key) + (len(value) if isinstance(value, str) else _VALUE)
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
