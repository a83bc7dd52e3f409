"""What works without assertions, as with `python -O`, and what does not."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from xftrain.errors import ConfigError
from xftrain.printable import one_line


def refuse_unreadable(overrides: Iterable[str]) -> None:
    """Refuses overrides that Hydra's parser cannot read without assertions.

    It takes tokens of mappings and functions off its list within `assert`.

    Raises:
        ConfigError: the first of them.
    """
    if not sys.flags.optimize:
        return
    parser = OverridesParser.create()
    for override in overrides:
        try:
            with suppress(HydraException):  # it is reported when it is composed
                parser.parse_override(override)
        except AttributeError as error:
            raise ConfigError(
                f"{one_line(override)} cannot be read with python -O, as Hydra needs assertions to "
                "read mappings and functions: run without -O."
            ) from error
