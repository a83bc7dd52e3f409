"""Refuses what does not work under `python -O`, without assertions."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line


def refuse_unreadable(overrides: Iterable[str]) -> None:
    """Refuses overrides that Hydra's parser cannot read without assertions.

    For mappings and functions, Hydra consumes tokens inside `assert` statements.

    Raises:
        ConfigError: names the first such override.
    """
    if not sys.flags.optimize:
        return
    parser = OverridesParser.create()
    for override in overrides:
        try:
            with suppress(HydraException):  # reported when the configuration is composed
                parser.parse_override(override)
        except AttributeError as error:
            raise ConfigError(
                f"{one_line(override)} cannot be read with python -O, as Hydra needs assertions to "
                "read mappings and functions: run without -O."
            ) from error
