"""Steps without which a run is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from xftrain.errors import first_line

log = logging.getLogger(__name__)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Makes an error within a warning.

    Args:
        what: the step, as the beginning of the warning.
    """
    try:
        yield
    except Exception as error:
        log.warning("%s failed (%s); the run is whole without it.", what, first_line(error))
        log.debug("%s failed", what, exc_info=error)
