"""Steps at the end of a run whose failure is not an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from xftrain.errors import first_line

log = logging.getLogger(__name__)


@contextmanager
def optional_step(what: str) -> Iterator[None]:
    """Turns an error within this context into a warning.

    Args:
        what: name of the step, with which the warning begins.
    """
    try:
        yield
    except Exception as error:
        log.warning("%s failed (%s); the run is complete without it.", what, first_line(error))
        log.debug("%s failed", what, exc_info=error)
