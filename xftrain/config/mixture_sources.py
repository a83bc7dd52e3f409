"""Checks the sources of `data=mixture`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xftrain.config.existing_paths import existing_paths
from xftrain.config.fields import PositiveFloat
from xftrain.config.option_config import OptionConfig
from xftrain.config.signatures import REQUIRED, Field
from xftrain.config.values import check_fields, show
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

_SOURCE = {
    "path": Field(str | list[str], REQUIRED),
    "weight": Field(PositiveFloat, REQUIRED),
    "text_key": Field(str | None, None),
    "val_path": Field(str | list[str] | None, None),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # part of a key and of a metric's name


def with_checked_sources(data: OptionConfig) -> OptionConfig:
    """The data option with its sources checked and completed, if it is a mixture."""
    # in a user's own class, `sources` may have another meaning
    sources = data.options.get("sources")
    if data.name is None or sources is None:
        return data
    return data.with_options(sources=checked_sources(sources))


def checked_sources(sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources by name, in alphabetical order, with all their keys.

    A source that is null is left out, so that an override can remove one.

    Raises:
        ConfigError: a source lacks a path or a weight, or has a wrong one.
    """
    given = {name: source for name, source in sources.items() if source is not None}
    if not given:
        raise ConfigError(
            "data.sources must name a source, as data.sources.code.path=<folder> with "
            "data.sources.code.weight=0.7 does, got none."
        )
    for name in given:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                "data.sources must have names of at most 64 letters, digits and _, got "
                f"{one_line(show(name))[:100]}."
            )
    return {name: _checked_source(f"data.sources.{name}", given[name]) for name in sorted(given)}


def _checked_source(key: str, source: Any) -> dict[str, Any]:
    if not isinstance(source, Mapping):
        raise ConfigError(f"{key} must be a mapping with path and weight, got {show(source)}.")
    values = check_fields(key, _SOURCE, source, owner=key)
    for name in ("path", "val_path"):
        if values[name] is not None:
            values[name] = existing_paths(f"{key}.{name}", values[name])
    return values
