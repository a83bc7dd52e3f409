"""A run asks its callbacks and loggers what they can do, whatever their class is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from xftrain.commands.callbacks import RunCallbacks
from xftrain.commands.loggers import RunLoggers, writes_tensorboard
from xftrain.commands.start import RunStart
from xftrain.config.option_config import OptionConfig
from xftrain.folders.run_folder import RunFolder
from xftrain.train.cut_back import truncatable


class OwnWatchdog(Callback):
    """Ends a run that hangs."""

    on_hang: Callable[[str], None] = staticmethod(print)
    is_ended = False

    def end(self) -> None:
        self.is_ended = True


class Clock(Callback):
    """Measures the speed, and has a bar."""

    def typical_tokens_per_s(self) -> float:
        return 12.0

    def bar(self) -> Callback:
        return Callback()


class OwnLogger(Logger):
    """Counts its records, and can be truncated."""

    records, empty_position = "mine", 0
    name = version = ""

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def position(self) -> int:
        return 3

    def cut_back(self, step: int, position: Any) -> None: ...

    def close(self) -> None: ...


def own(group: str, kind: type) -> dict[str, OptionConfig]:
    node = {"_target_": f"{__name__}.{kind.__name__}"}
    return {"mine": OptionConfig(f"{group}.mine", group, node)}


def test_a_callback_of_ones_own_is_a_watchdog_and_measures_the_speed():
    callbacks = RunCallbacks(
        {"a": own("callbacks", Clock)["mine"], **own("callbacks", OwnWatchdog)}
    )
    assert [type(callback) for callback in callbacks.all] == [OwnWatchdog, Clock]
    assert callbacks.tokens_per_s() == 12.0 and len(callbacks.bars) == 1
    told: list[str] = []
    callbacks.watch(told.append)
    callbacks.all[0].on_hang("no progress")  # type: ignore[attr-defined]
    callbacks.end()
    assert told == ["no progress"] and callbacks.all[0].is_ended  # type: ignore[attr-defined]


def test_a_logger_of_ones_own_is_truncated_when_a_run_is_resumed(tmp_path: Path):
    options = own("logger", OwnLogger)
    loggers = RunLoggers(options, tmp_path).all
    tensorboard = {"board": OptionConfig("logger.board", "logger", {"name": "tensorboard"})}
    assert writes_tensorboard(options | tensorboard) and not writes_tensorboard(options)
    assert list(truncatable(loggers)) == ["mine"]
    start = RunStart(RunFolder(tmp_path), None, loggers, is_same=False, on_start=lambda: None)
    assert start.early_loggers == []  # its file is created only when training begins
    assert start._checked_positions({"mine": 3, "other": "x"}) == {"mine": 3}
    for wrong in (-1, "x", {"a": 1}):
        with pytest.raises(ValueError, match="is not a count"):
            start._checked_positions({"mine": wrong})
