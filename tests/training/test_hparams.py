"""TensorBoard's HParams tab, asked over HTTP as its page does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.runs import run

pytestmark = pytest.mark.slow


@pytest.fixture
def url(tmp_path: Path):
    """A running TensorBoard over the runs of this test."""
    for lr in ("1e-3", "2e-3"):
        run(tmp_path / lr, "model.attn=naive", f"optim.lr={lr}")
    with pytest.raises(Exception, match="on purpose"):
        run(tmp_path / "broken", "+callbacks.broken._target_=tests.training.test_hparams.broken")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def broken() -> Any:
    from lightning.pytorch import Callback

    class Broken(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise ValueError("on purpose")

    return Broken()


def _ask(url: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/data/plugin/hparams/{what}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_the_tab_has_every_run_with_its_real_last_metrics(url: str, tmp_path: Path) -> None:
    metrics = [
        {"name": {"tag": tag, "group": ""}} for tag in ("val/loss", "val/accuracy", "train/loss")
    ]
    statuses = [f"STATUS_{name}" for name in ("SUCCESS", "FAILURE", "RUNNING", "UNKNOWN")]
    question = {
        "experimentName": "",
        "allowedStatuses": statuses,
        "colParams": [
            *({"hparam": key, "includeInResult": True} for key in ("optim.lr", "model.attn.name")),
            *({"metric": m["name"], "includeInResult": True} for m in metrics),
        ],
        "startIndex": 0,
        "sliceSize": 10,
    }
    for _ in range(100):  # it starts, and then reads one run after the other
        try:
            answer = _ask(url, "session_groups", question)
        except (urllib.error.URLError, ConnectionError):
            answer = {}
        if len(answer.get("sessionGroups", [])) == 3:
            break
        time.sleep(0.3)
    groups = answer["sessionGroups"]
    assert len(groups) == 3
    shown = {}
    for group in groups:
        (session,) = group["sessions"]
        values = {m["name"]["tag"]: m["value"] for m in session.get("metricValues", [])}
        shown[session["name"]] = (group["hparams"], values)
    for lr in ("1e-3", "2e-3"):
        hparams, values = shown[lr]
        assert hparams["optim.lr"] == float(lr) and hparams["model.attn.name"] == "naive"
        result = json.loads((tmp_path / lr / "result.json").read_text())["metrics"]
        for tag in ("val/loss", "val/accuracy", "train/loss"):
            assert values[tag] == pytest.approx(result[tag], rel=1e-6)
    assert shown["broken"][1] == {}  # it is there, and has no point that nobody measured


def test_no_point_is_written_that_was_not_measured(tmp_path: Path) -> None:
    run(tmp_path, "model.attn=naive")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    for tag in board.Tags()["scalars"]:
        assert all(point.step > 0 for point in board.Scalars(tag)), tag
