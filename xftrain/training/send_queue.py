"""Records on their way to somewhere that may be slow, or gone, while training goes on."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from xftrain.errors import first_line

log = logging.getLogger(__name__)

_MAX_WAITING = 10_000  # records
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0  # after a failure; each is twice the one before


class SendQueue:
    """Sends records one after another in a thread of its own, so that nothing waits for them.

    After a failure, what comes within a pause is dropped rather than tried.

    Args:
        name: of the receiver, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._last: Callable[[], None] = _nothing
        self._num_lost, self._pause_s, self._not_before = 0, 0.0, 0.0
        self._thread = threading.Thread(target=self._send_all, daemon=True, name=f"to {name}")
        self._thread.start()

    def put(self, send: Callable[[], None]) -> None:
        """Has a record sent after those before it; returns at once."""
        if self._waiting.qsize() < _MAX_WAITING:
            self._waiting.put(send)
        else:
            self._num_lost += 1

    def close(self, last: Callable[[], None], wait_s: float) -> None:
        """Sends what is left and a last record, which is tried whatever has failed before.

        Args:
            last: ends the record of the run.
            wait_s: how long to wait for all that at most, in seconds.
        """
        self._last = last
        self._waiting.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            log.warning("%s has not taken all records within %g s.", self._name, wait_s)
        elif self._num_lost:
            log.warning("%s has not got %d records.", self._name, self._num_lost)

    def _send_all(self) -> None:
        while (send := self._waiting.get()) is not None:
            self._attempt(send)
        self._not_before = 0.0
        self._attempt(self._last)

    def _attempt(self, send: Callable[[], None]) -> None:
        if time.monotonic() < self._not_before:
            self._num_lost += 1
            return
        try:
            send()
            self._pause_s = 0.0
        except Exception as error:
            if not self._num_lost:
                log.warning(
                    "%s could not record (%s): training continues, and metrics that are lost "
                    "there are in the run folder where logger=csv is on.",
                    *(self._name, first_line(error)),
                )
            self._num_lost += 1
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._not_before = time.monotonic() + self._pause_s


def _nothing() -> None:
    pass
