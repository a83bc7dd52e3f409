"""Logs how far a long preparation is: its share, its speed, and when it will be done."""

from __future__ import annotations

import logging
import time
from collections import deque

log = logging.getLogger(__name__)

_FIRST_S, _MOST_S = 5.0, 60.0


class Progress:
    """Logs a line after 5 s, and then at intervals that grow to a minute.

    Args:
        total: number of bytes of all files.
    """

    def __init__(self, total: int) -> None:
        self._total = max(total, 1)
        self._start: tuple[float, int, int] | None = None  # of what is not yet tokenized
        self._read: deque[tuple[int, int]] = deque()  # ends of chunks that are not yet tokenized
        self._last = (0, 0)  # the end of the last one that is
        self._num_done = 0
        self._interval_s = _FIRST_S
        self._next_s = time.monotonic() + _FIRST_S

    def update(self, position: int, text_bytes: int, num_done: int, *, is_new: bool) -> None:
        """Tells that a chunk has been read.

        Args:
            position: number of bytes of files that have been read.
            text_bytes: number of bytes of text that have been read.
            num_done: number of chunks that have been tokenized.
            is_new: whether this chunk has to be tokenized.
        """
        now = time.monotonic()
        if not is_new and not self._read:  # it has a shard of an earlier preparation
            self._last = position, text_bytes
        if is_new:
            self._start = self._start or (now, *self._last)
            self._read.append((position, text_bytes))
        while self._num_done < num_done:
            self._num_done, self._last = self._num_done + 1, self._read.popleft()
        if now < self._next_s or self._start is None or not self._num_done:
            return
        position, text_bytes = self._last
        self._interval_s = min(1.5 * self._interval_s, _MOST_S)
        self._next_s = now + self._interval_s
        begin, first_position, first_bytes = self._start
        seconds = max(now - begin, 1e-3)
        speed = (text_bytes - first_bytes) / seconds
        share = min(position / self._total, 1.0)
        per_s = max(position - first_position, 1) / seconds
        log.info(
            "data.path: %.0f %% tokenized, %.1f MB/s, about %s left",
            100 * share,
            speed / 1e6,
            _duration((self._total - position) / per_s),
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
