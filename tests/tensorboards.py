"""TensorBoard over the runs of a test, asked as its page does, and what their event files hold."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

METRICS = ("val/loss", "val/accuracy", "train/loss")


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of a running TensorBoard."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _ask(url: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/data/plugin/hparams/{what}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def hparams_tab(
    folder: Path, hparams: Sequence[str], *, num_runs: int
) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """What the HParams tab has of each run below a folder: hyperparameters and metrics."""
    statuses = [f"STATUS_{name}" for name in ("SUCCESS", "FAILURE", "RUNNING", "UNKNOWN")]
    columns = [{"hparam": key} for key in hparams]
    columns += [{"metric": {"tag": tag, "group": ""}} for tag in METRICS]  # type: ignore[dict-item]
    question = {
        "experimentName": "",
        "allowedStatuses": statuses,
        "colParams": [{**column, "includeInResult": True} for column in columns],
        "startIndex": 0,
        "sliceSize": 100,
    }
    shown: dict[str, tuple[dict[str, Any], dict[str, float]]] = {}
    with _served(folder) as url:
        for _ in range(100):  # it starts, and then reads one run after the other
            try:
                groups = _ask(url, "session_groups", question).get("sessionGroups", [])
            except (urllib.error.URLError, ConnectionError):
                groups = []
            for group in groups:
                for session in group["sessions"]:
                    values = {m["name"]["tag"]: m["value"] for m in session.get("metricValues", [])}
                    shown[session["name"]] = (group["hparams"], values)
            if len(shown) >= num_runs:
                break
            time.sleep(0.3)
    return shown


def are_last_metrics(shown: dict[str, float], metrics: dict[str, float]) -> None:
    """The tab has the metrics of a run as its `result.json` has them."""
    assert set(METRICS) <= set(shown)
    assert shown == {tag: pytest.approx(metrics[tag], rel=1e-6) for tag in shown}


def steps_of(run_dir: Path) -> dict[str, list[int]]:
    """The steps at which a run has a point, by metric."""
    board = EventAccumulator(str(run_dir))
    board.Reload()
    return {tag: [p.step for p in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
