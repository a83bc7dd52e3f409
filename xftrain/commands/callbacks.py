"""Builds the callbacks of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback

from xftrain.config import registry
from xftrain.config.run_config import Options


@runtime_checkable
class Watchdog(Protocol):
    """A callback that ends the run if it makes no progress.

    Attributes:
        on_hang: called with a sentence before the run ends.
    """

    on_hang: Callable[[str], None]

    def end(self) -> None:
        """Stops the watchdog."""
        ...


@runtime_checkable
class HasBar(Protocol):
    """A callback that adds a progress bar to the trainer's callbacks."""

    def bar(self) -> Callback | None:
        """The progress bar, or None."""
        ...


@runtime_checkable
class MeasuresSpeed(Protocol):
    """A callback that measures the speed of the run."""

    def typical_tokens_per_s(self) -> float | None:
        """The typical speed in tokens/s; None if it is unknown."""
        ...


class RunCallbacks:
    """Builds the callbacks of a run.

    Args:
        options: the options of the group `callbacks`.
    """

    def __init__(self, options: Options) -> None:
        self._by_key = {key: registry.build(option) for key, option in options.items()}
        built: list[Callback] = [*self._by_key.values()]
        # watchdogs come first, so that they end before another callback's `on_fit_end`
        self.all = sorted(built, key=lambda callback: not isinstance(callback, Watchdog))
        self.watchdogs = [callback for callback in built if isinstance(callback, Watchdog)]
        self.bars = [bar for c in self.all if isinstance(c, HasBar) and (bar := c.bar())]

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
        speeds = [c.typical_tokens_per_s() for c in self.all if isinstance(c, MeasuresSpeed)]
        return next(iter(speeds), None)
