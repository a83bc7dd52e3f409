"""Logs how far a long preparation is: its share, its speed, and when it will be done."""

from __future__ import annotations

import logging
import time

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
        self._begin = time.monotonic()
        self._interval_s = _FIRST_S
        self._next_s = self._begin + _FIRST_S

    def update(self, position: int, text_bytes: int, *, is_new: bool) -> None:
        """Tells the progress.

        Args:
            position: number of bytes of files that have been read.
            text_bytes: number of bytes of text that have been read.
            is_new: whether the last chunk has no shard from an earlier preparation.
        """
        now = time.monotonic()
        if self._start is None and is_new:
            self._start = now, position, text_bytes
        if now < self._next_s or self._start is None:
            return
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
