"""A sweep compares no results of different data."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.commands import sweep_data
from xftrain.commands.sweep_data import refuse_other_data, restore_digests
from xftrain.commands.train import run
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.multirun.job_config import job_description, write_job_config

Command = Callable[..., Ended]
Jobs = list[list[str]]
CONFIG = {"data.name": "text", "data.path": "corpus", "data.batch_size": None, "optim.lr": 0.1}


def _job(sweep: Path, name: str, digest: str | None, status: str = "completed", **config: Any):
    folder = sweep / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".job.json").write_text(json.dumps({"config": {**CONFIG, **config}}))
    result = {"status": status, "overrides": [], "data_digest": digest}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_another_content_is_refused_and_options_that_keep_it_are_not(tmp_path: Path) -> None:
    first = _job(tmp_path, "0", None)
    refuse_other_data(tmp_path, first, "a" * 64)
    other = _job(tmp_path, "1", None, **{"optim.lr": 0.2, "data.batch_size": 8, "seed": 1})
    refuse_other_data(tmp_path, other, "a" * 64)
    refuse_other_data(tmp_path, other, None)  # data without a digest
    for _ in range(2):  # a refused job leaves nothing
        with pytest.raises(ConfigError) as refused:
            refuse_other_data(tmp_path, other, "b" * 64)
    said = str(refused.value)
    assert "the text of data.path=corpus has changed since job 0 of this sweep" in said
    assert "(digest aaaaaaaaaaaa -> bbbbbbbbbbbb)" in said and "delete result.json" in said
    refuse_other_data(tmp_path, _job(tmp_path, "2", None, **{"data.path": "other"}), "b" * 64)


def test_of_a_resumed_sweep_the_completed_jobs_count(tmp_path: Path) -> None:
    job = _job(tmp_path, "2", None)
    refuse_other_data(tmp_path, job, "of a job that failed")
    _job(tmp_path, "0", "of a job that failed", status="failed")
    _job(tmp_path / "0", "former-1", "of a former run")
    restore_digests(tmp_path)
    refuse_other_data(tmp_path, job, "new")  # none has completed
    _job(tmp_path / "nested", "1", "old")
    restore_digests(tmp_path)
    with pytest.raises(ConfigError, match=r"since job 1 of this sweep \(digest old -> new\)"):
        refuse_other_data(tmp_path, job, "new")


def test_completed_jobs_with_different_data_are_told(tmp_path: Path) -> None:
    _job(tmp_path, "0", "old")
    _job(tmp_path, "1", "new")
    with pytest.raises(ConfigError, match="has changed since job 0 of this sweep"):
        restore_digests(tmp_path)


def test_results_without_a_record_of_their_data_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _job(tmp_path, "0", None)
    restore_digests(tmp_path)
    assert not caplog.text  # the data has no digest
    (folder / "result.json").write_text('{"status": "completed", "overrides": []}')
    with caplog.at_level(logging.WARNING):
        restore_digests(tmp_path)
    assert "1 completed jobs of" in caplog.text and "have no record of the content" in caplog.text


def test_jobs_that_start_together_do_not_both_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _job(tmp_path, "0", None), _job(tmp_path, "1", None)
    leave = sweep_data._write_digest

    def late(*arguments: Any) -> Path:
        monkeypatch.setattr(sweep_data, "_write_digest", leave)
        refuse_other_data(tmp_path, second, "b")
        return leave(*arguments)

    monkeypatch.setattr(sweep_data, "_write_digest", late)
    with pytest.raises(ConfigError, match="has changed since job 1"):
        refuse_other_data(tmp_path, first, "a")
    refuse_other_data(tmp_path, first, "b")


@pytest.mark.parametrize("content", ["[]", '{"digest": 3}', '{"digest": "\\u001b[2J", "job": []}'])
def test_what_somebody_else_left_is_compared_and_shown_safely(tmp_path: Path, content: str) -> None:
    job = _job(tmp_path, "0", None)
    refuse_other_data(tmp_path, job, "a")
    (left,) = (tmp_path / ".jobs").glob("data-*")
    left.rename(left.with_name(left.name.replace(left.stem[-4:], "0000")))
    next((tmp_path / ".jobs").glob("data-*")).write_text(content)
    try:
        refuse_other_data(tmp_path, job, "b")
    except ConfigError as error:
        assert "\x1b" not in str(error) and content != "[]"


def test_a_link_in_place_of_the_records_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data-precious.json").write_text("precious")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".jobs").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a link"):
        restore_digests(tmp_path / "sweep")
    assert (tmp_path / "data-precious.json").exists()


TINY = ["model.dim=16", "model.num_layers=1", "model.num_heads=2", "model.attn=naive", "seq=16"]
TINY += ["batch_tokens=64", "max_steps=1", "trainer=cpu", "data=text", "data.path=corpus"]
TINY += ["callbacks.sample=null"]


def test_a_run_records_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_corpus("first")
    digests = []
    for name in ("a", "b"):
        cfg = compose(*TINY, "data.cache_dir=cache")
        digests.append(run(cfg, tmp_path / name)["data_digest"])
        _write_corpus("other")
    assert len(digests[0]) == 64 and digests[0] != digests[1]


def _write_corpus(text: str) -> None:
    os.makedirs("corpus", exist_ok=True)
    for number in range(3):
        Path("corpus", f"{number}.txt").write_text(f"{text} {number}\n" * 60)


@pytest.mark.usefixtures("forked_jobs")
@pytest.mark.long
def test_a_corpus_that_changes_within_a_sweep_or_before_it_is_resumed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Jobs of two corpora were compared in one table, and one of them was the best."""
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = request.getfixturevalue("command")
    monkeypatch.chdir(tmp_path)
    _write_corpus("first")
    sweep = ["-m", *TINY, "logger=csv", "optim.lr=1e-3,2e-3", "hydra.sweep.dir=sweep"]
    ended = command(*sweep)
    assert ended.code == 0, ended
    shutil.rmtree(next(tmp_path.glob("sweep/1_*")))
    _write_corpus("other")
    ended = command("resume_sweep=sweep")
    assert ended.code == 1 and "the text of data.path=corpus has changed since job 0_" in ended.err
    _write_corpus("first")
    assert command("resume_sweep=sweep").code == 0


def test_a_sweep_with_jobs_of_two_corpora_is_not_resumed(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    for number, digest in (("0_seq=8", "old"), ("1_seq=32", "new")):
        path = tmp_path / "sweep" / number / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "data_digest": digest}))
    before = (tmp_path / "sweep" / "summary.csv").read_text()
    said = one_sentence(command("resume_sweep=sweep"), 2)
    assert "the content of data has changed since job 0_seq=8" in said
    assert (tmp_path / "sweep" / "summary.csv").read_text() == before


def test_the_options_of_a_job_are_those_of_its_record(tmp_path: Path) -> None:
    cfg = compose("data=text", f"data.path='{tmp_path}'", "data.packing=true")
    write_job_config(job_description(cfg, validate(cfg)), tmp_path)
    found = sweep_data._options_of(tmp_path)
    assert found["data.path"] == str(tmp_path) and found["data.val_fraction"] == 0.1
    assert not found.keys() & {"data.packing", "data.batch_size", "seed"}
