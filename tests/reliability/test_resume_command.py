"""A run that is stopped from outside says what is saved and which command resumes it."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

import xftrain
from tests.train.runs import SMALL, run
from xftrain.commands import result_file
from xftrain.data.counting import Counting
from xftrain.errors import Stopped


def stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *overrides: str
) -> None:
    """A run of these overrides that a signal ends while it makes the batch of its third step."""
    batch = Counting.batch
    asked = []

    def stop(self, split, step, rank=0):
        asked.append(split)
        if split == "train" and asked.count(split) == 4:  # the first is looked at before
            os.kill(os.getpid(), number)
        return batch(self, split, step, rank)

    with monkeypatch.context() as patch:
        patch.setattr(Counting, "batch", stop)
        with pytest.raises(Stopped):
            run(folder, *overrides)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command line, as Hydra has read it."""
    words = [*SMALL, "ckpt=auto", "hydra.run.dir=elsewhere"]
    job = {"num": "???", "config": {"override_dirname": {"exclude_keys": []}}}
    settings = SimpleNamespace(
        mode=RunMode.RUN,
        overrides=SimpleNamespace(task=OmegaConf.create([])),
        job=OmegaConf.create(job),
    )
    hydra = SimpleNamespace(initialized=lambda: True, get=lambda: settings)
    monkeypatch.setattr(result_file, "HydraConfig", hydra)
    monkeypatch.setattr("sys.argv", ["xftrain", *words])
    return words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_names_its_checkpoint_and_the_command_that_resumes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    typed: list[str],
    number: signal.Signals,
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "a 'folder', of mine"
    stopped(folder, monkeypatch, number)
    lines = [record.getMessage() for record in caplog.records][-2:]
    assert lines[0] == (
        f"stopped by {number.name} at step 2, saved in {folder}/checkpoints/last.ckpt"
    )
    assert lines[1].startswith("resume with: python -m xftrain trainer=cpu ")
    words = shlex.split(lines[1].partition(": ")[2])
    assert words[:3] == ["python", "-m", "xftrain"]
    place = f'hydra.run.dir="{folder}"'
    assert words[3:] == [*typed[: len(SMALL)], place, "ckpt=auto"]
    cfg = xftrain.compose(*words[3:])  # Hydra can read it
    assert (cfg.ckpt, cfg.max_steps) == ("auto", 6)


def test_without_a_checkpoint_there_is_nothing_to_resume(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    typed: list[str],
) -> None:
    caplog.set_level("INFO")
    stopped(tmp_path, monkeypatch, signal.SIGTERM, "callbacks.checkpoint=null")
    assert "resume with" not in caplog.text


def test_from_python_no_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stopped(tmp_path, monkeypatch, signal.SIGTERM)
    assert "saved in" in caplog.text and "resume with" not in caplog.text
