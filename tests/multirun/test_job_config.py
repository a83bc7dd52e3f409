"""A resumed sweep has jobs of one configuration, or says which key differs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.config.compose import compose, validate
from xftrain.errors import SweepRefused
from xftrain.multirun.job_config import job_description, refuse_other_config, write_job_config
from xftrain.utils.read_variables import READ

Command = Callable[..., Ended]
Jobs = list[list[str]]


def _job_description(*overrides: str, **changes: object) -> dict[str, object]:
    cfg = compose(*overrides)
    return {**job_description(cfg, validate(cfg)), **changes}


def test_another_value_of_the_same_overrides_is_told(tmp_path: Path) -> None:
    write_job_config(_job_description(), tmp_path)
    refuse_other_config(_job_description(), tmp_path)
    more = ["model.attn=naive", "optim.betas=[0.8,0.9]", "tags=[a]"]
    with pytest.raises(SweepRefused) as refused:
        refuse_other_config(_job_description("max_steps=3", *more), tmp_path)
    said = str(refused.value)
    assert "max_steps 400 -> 3" in said and "and 1 more" in said and "\n" not in said
    assert str(tmp_path / "result.json") in said
    with pytest.raises(SweepRefused, match="callbacks.sample.name.* -> absent"):
        refuse_other_config(_job_description("callbacks.sample=null"), tmp_path)


def test_a_secret_is_compared_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(READ, "values", {})
    typed = ["tags=['${oc.env:TOKEN}']", "seed='${oc.decode:${oc.env:SEED}}'"]
    monkeypatch.setenv("TOKEN", "hunter2secret")
    monkeypatch.setenv("SEED", "5")
    write_job_config(_job_description(*typed), tmp_path)
    assert "hunter2" not in (tmp_path / ".job.json").read_text()
    refuse_other_config(_job_description(*typed), tmp_path)
    monkeypatch.setenv("TOKEN", "another one")
    with pytest.raises(SweepRefused, match="oc.env:TOKEN") as refused:
        refuse_other_config(_job_description(*typed), tmp_path)
    assert "hunter2" not in str(refused.value) and "another one" not in str(refused.value)


def test_other_code_of_a_users_own_class_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own_mod.py").write_text(
        "class Own:\n    def __call__(self, x):\n        return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = "+model.ffn._target_=own_mod.Own"
    made = _job_description("~model/ffn", own)
    assert list(made["own_code"]) == ["own_mod.Own"] and "own_code" not in _job_description()
    write_job_config(made, tmp_path)
    with caplog.at_level(logging.WARNING):
        refuse_other_config(made, tmp_path)
        assert not caplog.text
        refuse_other_config({**made, "own_code": {"own_mod.Own": "another"}}, tmp_path)
    assert "other code of own_mod.Own" in caplog.text


def test_what_cannot_be_compared_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refuse_other_config(_job_description(), tmp_path)
        assert "has no record of its configuration" in caplog.text
        write_job_config(_job_description(xftrain="0.0"), tmp_path)
        refuse_other_config(_job_description(), tmp_path)
    assert "was run with xftrain 0.0" in caplog.text


def test_what_a_file_holds_is_cut_where_it_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a value of 3 MB was a message of 4 MB on the console
    write_job_config(_job_description(config={"seed": "A" * 500_000, "k" * 400_000: 1}), tmp_path)
    with pytest.raises(SweepRefused, match='seed "AAA.* -> 0') as refused:
        refuse_other_config(_job_description(), tmp_path)
    assert len(str(refused.value)) < 3000
    write_job_config(_job_description(xftrain="0" * 500_000), tmp_path)
    caplog.clear()
    refuse_other_config(_job_description(), tmp_path)
    assert 0 < len(caplog.text) < 3000


@pytest.mark.parametrize("content", ['{"config": 3}', "[]", '{"config": {"seq": {}}}'])
def test_a_file_of_another_shape_ends_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / ".job.json").write_text(content)
    try:
        refuse_other_config(_job_description(), tmp_path)
    except SweepRefused:
        assert '"seq"' in content


def _option(folder: Path, decay: float) -> None:
    path = folder / "own" / "optim" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"name: adamw\nlr: 0.1\nweight_decay: {decay}\n")


def test_an_option_file_that_has_changed_is_told_before_any_job(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    sweep = ["-m", "--config-dir", "own", "seq=16,8,32", "optim=mine"]
    _option(tmp_path, 0.1)
    command(*sweep, "hydra.sweep.dir=sweep")  # seq=16 fails
    before = {path: path.read_text() for path in tmp_path.glob("sweep/**/*.json")}
    jobs.clear()

    _option(tmp_path, 0.2)
    said = one_sentence(command(*sweep, "resume_sweep=sweep"), 2)
    assert "optim.weight_decay 0.1 -> 0.2" in said and "1_seq=8" in said and jobs == []
    _option(tmp_path, -1)  # nor is a result overwritten by the refusal of its job
    assert "optim.weight_decay must be" in one_sentence(command(*sweep, "resume_sweep=sweep"), 2)
    assert before == {path: path.read_text() for path in tmp_path.glob("sweep/**/*.json")}

    _option(tmp_path, 0.1)
    command(*sweep, "resume_sweep=sweep")
    assert ["seq=16" in words for words in jobs] == [True]


def test_a_drawn_job_is_compared_when_it_is_drawn(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    search = ["--config-dir", "own", "hparams_search=optuna", "hydra.sweeper.n_trials=1"]
    search += ["optim=mine", "seq=8"]
    _option(tmp_path, 0.1)
    assert command(*search, "hydra.sweep.dir=search").code == 0
    (before,) = [path.read_text() for path in tmp_path.glob("search/*/result.json")]
    for decay, sentence in (
        (0.2, "optim.weight_decay 0.1 -> 0.2"),
        (-1, "job 0: optim.weight_decay must be"),
    ):
        _option(tmp_path, decay)
        ended = command(*search, "resume_sweep=search")
        assert ended.code == 2 and sentence in ended.err
        assert before == next(tmp_path.glob("search/*/result.json")).read_text()


def test_a_completed_job_with_other_overrides_is_run(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    """It stands in the folder of the job, as after another sweep there."""
    command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    path = tmp_path / "sweep" / "0_seq=8" / "result.json"
    result = json.loads(path.read_text())
    for overrides in (["seq=8", "seed=1"], [], ["seq=16"]):
        path.write_text(json.dumps({**result, "overrides": overrides}))
        jobs.clear()
        assert command("resume_sweep=sweep").code == 0
        assert [words[2] for words in jobs] == ["seq=8"]
