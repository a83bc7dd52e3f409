"""What a user's callback gives to a logger is written down without secrets."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.runs import rows_of, run
from xftrain.logger._hidden_records import hidden_values, hiding_writer
from xftrain.train.tracker import Tracker
from xftrain.utils.read_variables import READ

SECRET = "hunter2-hunter2"
NAME = "${oc.env:XFTRAIN_TEST_TOKEN}"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READ, "values", {})
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", SECRET)


class Tells(Callback):
    """Gives a secret to every logger, in all the ways that there are."""

    def __init__(self, token: str) -> None:
        self.token = token

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        token = self.token
        for logger in trainer.loggers:
            logger.log_metrics({f"m/{token}": 1.0}, step=0)
            logger.log_hyperparams(
                {"token": token, token: 1, "path": Path("/x", token), "n": [token]}
            )
            logger.log_hyperparams(Namespace(token=token))
        board, csv = trainer.loggers
        csv.experiment.log_metrics({f"n/{token}": 2.0}, step=1)
        csv.experiment.log_hparams({token: token})
        board.log_hyperparams({"a": token}, {f"h/{token}": 1.0})
        tell(board.experiment, token)


def tell(writer: Any, token: str) -> None:
    writer.add_text(f"t/{token}", f"it is {token}", 0)
    writer.add_scalar(f"s/{token}", 1.0, 0)
    writer.add_scalars(token, {token: 1.0}, 0)
    writer.add_hparams({"token": token, token: 1}, {token: 1.0}, run_name=token)
    writer.add_histogram(token, np.arange(4), 0)
    writer.add_embedding(torch.ones(2, 2), metadata=[token, token], tag=token)
    writer.add_custom_scalars({token: {token: ["Multiline", [token]]}})


def files_with(folder: Path, text: str) -> list[str]:
    paths = list(folder.rglob("*"))
    held = [path for path in paths if path.is_file() and text.encode() in path.read_bytes()]
    return [*map(str, held), *(str(path) for path in paths if text in path.name)]


def test_no_logger_writes_a_secret(tmp_path: Path) -> None:
    run(tmp_path, f"+callbacks.own={{_target_: {__name__}.Tells}}", f"+callbacks.own.token={NAME}")
    assert files_with(tmp_path, SECRET) == []
    assert rows_of(tmp_path, f"n/{NAME}") == {1: 2.0}
    assert NAME in (tmp_path / "hparams.yaml").read_text()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert f"s/{NAME}" in events.Tags()["scalars"]
    assert events.Tensors(f"t/{NAME}/text_summary")[0].tensor_proto.string_val[0] == (
        f"it is {NAME}".encode()
    )


def test_the_writer_alone_hides_what_torch_writes_elsewhere(tmp_path: Path) -> None:
    READ.values["XFTRAIN_TEST_TOKEN"] = SECRET
    writer = hiding_writer()(log_dir=str(tmp_path))
    tell(writer, SECRET)
    writer.close()
    assert files_with(tmp_path, SECRET) == []
    assert len(list(tmp_path.rglob("*.tfevents.*"))) >= 3


class OwnTracker(Tracker):
    """A tracker that keeps what it would send."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.sent: list[dict[str, float]] = []
        self._queue: Any = self

    def put(self, send: Any) -> None:
        send()

    def make(self) -> Any: ...

    def send_text(self, tag: str, text: str, step: int) -> None: ...

    def end(self, *, is_whole: bool) -> None: ...


def test_records_of_a_tracker_have_no_secret_in_their_names(tmp_path: Path) -> None:
    READ.values["XFTRAIN_TEST_TOKEN"] = SECRET

    class Lightnings:
        def log_metrics(self, metrics: dict[str, float], step: int | None) -> None:
            tracker.sent.append(metrics)

    tracker = OwnTracker(tmp_path)
    tracker._logger = Lightnings()
    tracker.log_metrics({f"m/{SECRET}": 1.0}, 0)
    assert tracker.sent == [{f"m/{NAME}": 1.0}]


def test_other_values_stay_as_they_are() -> None:
    READ.values["XFTRAIN_TEST_TOKEN"] = SECRET
    tensor, path = torch.ones(2), Path("/x")
    held = hidden_values({"a": tensor, "b": path, "c": (1, None, True), "d": 0.5})
    assert held["a"] is tensor and held["b"] is path
    assert (held["c"], held["d"]) == ([1, None, True], 0.5)
