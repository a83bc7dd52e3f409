"""Builds the callbacks of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback

from xftrain.callbacks.metrics import Metrics
from xftrain.callbacks.progress import Progress
from xftrain.callbacks.watchdog import Watchdog
from xftrain.config import registry
from xftrain.config.run_config import Options


class RunCallbacks:
    """Builds the callbacks of a run.

    Args:
        options: the options of the group `callbacks`.
    """

    def __init__(self, options: Options) -> None:
        self._by_key = {key: registry.build(option) for key, option in options.items()}
        built: list[Callback] = [*self._by_key.values()]
        self.watchdogs = [callback for callback in built if isinstance(callback, Watchdog)]
        others = [callback for callback in built if callback not in self.watchdogs]
        # watchdogs come first, so that they end before another callback's `on_fit_end`
        self.all = [*self.watchdogs, *others]
        self.bars = [bar for c in self.all if isinstance(c, Progress) and (bar := c.bar())]

    def key_of(self, callback: Callback) -> str | None:
        """The key of a callback under `callbacks`; None for xftrain's internal callbacks."""
        return next((key for key, built in self._by_key.items() if built is callback), None)

    def watch(self, on_hang: Callable[[str], None]) -> None:
        """Makes each watchdog call `on_hang` with a sentence if the run makes no progress."""
        for watchdog in self.watchdogs:
            watchdog.on_hang = on_hang

    def end(self) -> None:
        """Stops the watchdogs, however the run ended."""
        for watchdog in self.watchdogs:
            watchdog.end()

    def tokens_per_s(self) -> float | None:
        """The typical speed of the run, tokens/s; None if no callback measured it."""
        speeds = [c.typical_tokens_per_s() for c in self.all if isinstance(c, Metrics)]
        return next(iter(speeds), None)
