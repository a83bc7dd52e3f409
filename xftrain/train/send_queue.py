"""Sends records in the background to a receiver that may be slow or unreachable."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from xftrain.errors import first_line
from xftrain.utils.console import plain_output

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_WAITING = 10_000  # maximum number of queued records
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0  # pause after a failure, doubled by each further one


class NoAnswer(Exception):
    """The receiver has not answered within the time limit."""


class SendQueue:
    """Sends records one after another in a separate thread, so that training does not wait.

    Records that are due within the pause after a failure are dropped.

    Args:
        name: name of the receiver, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._last: Callable[[], None] = _nothing
        self._num_lost, self._pause_s, self._not_before = 0, 0.0, 0.0
        self._thread = threading.Thread(target=self._send_all, daemon=True, name=f"to {name}")
        self._thread.start()

    def call(self, task: Callable[[], T], wait_s: float) -> T:
        """Runs a task in the thread and returns its result.

        Args:
            task: the function; an exception that it raises is raised here.
            wait_s: maximum time to wait for it, in seconds.

        Raises:
            NoAnswer: the task is still running, and keeps the thread.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(task())
            except BaseException as error:  # it is raised in the other thread
                answer.set_exception(error)

        self._waiting.put(run)
        # not `answer.result(wait_s)`: a TimeoutError could be the task's own
        if not wait([answer], wait_s).done:
            raise NoAnswer
        return answer.result()

    def abandon(self) -> None:
        """Ends the thread once its task ends, for a run of the tracker that did not start."""
        self._waiting.put(None)

    def put(self, send: Callable[[], None]) -> None:
        """Queues a record, and returns at once."""
        if self._waiting.qsize() < _MAX_WAITING:
            self._waiting.put(send)
        else:
            self._num_lost += 1

    def close(self, last: Callable[[], None], wait_s: float) -> None:
        """Sends the queued records, then a last one, which is tried even after failures.

        Args:
            last: sends the end of the run.
            wait_s: maximum time to wait for all records, in seconds.
        """
        self._last = last
        self._waiting.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            log.warning("%s has not received all records within %g s.", self._name, wait_s)
        elif self._num_lost:
            log.warning("%s has not received %d records.", self._name, self._num_lost)

    def _send_all(self) -> None:
        with plain_output():
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
                    "there are in the run folder if logger=csv is on.",
                    *(self._name, first_line(error)),
                )
            self._num_lost += 1
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._not_before = time.monotonic() + self._pause_s


def _nothing() -> None:
    pass
