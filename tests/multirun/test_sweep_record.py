"""What a sweep's record says, and what command comes of it; no command is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from xftrain.errors import ConfigError
from xftrain.multirun import record as sweep_record
from xftrain.multirun.record import (
    is_resumable,
    is_resumed,
    make_record,
    resumed,
    without_keys,
    write_record,
)

RECORD: dict[str, Any] = {"config_name": "train", "config_dirs": [], "overrides": ["seq=8,16"]}


@pytest.fixture(autouse=True)
def _sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    write_record(RECORD, tmp_path / "sweep")
    monkeypatch.setenv(sweep_record._RESUMED, "")  # to be taken back at the end
    monkeypatch.delenv(sweep_record._RESUMED)
    yield


def _arguments(*overrides: str, has_flags: bool = False) -> list[str]:
    return resumed(overrides, has_flags=has_flags)


def test_the_folder_alone_resumes_with_what_is_recorded() -> None:
    place = ["hydra.sweep.dir=" + sweep_record.literal(Path("sweep"))]
    command = ["--multirun", "--config-name", "train", "seq=8,16"]
    assert _arguments("resume_sweep=sweep") == [*command, *place]
    assert is_resumed()
    own = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert _arguments("resume_sweep=sweep", *own) == [*command, *own, *place]
    assert _arguments("resume_sweep=nowhere", "resume_sweep=sweep") == [*command, *place]


def test_a_command_that_is_repeated_has_all_that_is_recorded() -> None:
    again = ["seq=8,16", "seed=1"]
    made = _arguments(*again, "resume_sweep=sweep")
    assert made[:3] == ["--multirun", *again] and is_resumed()
    assert _arguments("++seq=8,16", "resume_sweep=sweep")[1] == "++seq=8,16"
    for has_flags, typed in ((False, ["seq=8"]), (False, ["seed=1"]), (True, [])):
        with pytest.raises(ConfigError, match=r"had seq=8,16, which this command lacks") as said:
            _arguments("resume_sweep=sweep", *typed, has_flags=has_flags)
        assert "type resume_sweep=sweep alone" in str(said.value)
        assert not is_resumed()


def test_without_the_word_nothing_is_resumed() -> None:
    _arguments("resume_sweep=sweep")
    assert is_resumed()
    assert _arguments("seq=8", "hydra.sweep.dir=x") == ["seq=8", "hydra.sweep.dir=x"]
    assert not is_resumed()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": "seq=8"}, "no list of overrides"),
        ({"overrides": [8]}, "no list of overrides"),
        ({"config_name": "nope"}, "a configuration of its own"),
        ({"config_name": None}, "a configuration of its own"),
        ({"config_name": ["train"]}, "a configuration of its own"),
        ({"config_dirs": ["/own"]}, "a folder of options"),
        ({"config_dirs": None}, "a folder of options"),
    ],
)
def test_a_record_of_another_kind_is_told_and_no_way_to_resume(
    changes: dict[str, Any], said: str
) -> None:
    write_record(RECORD | changes, Path("sweep"))
    with pytest.raises(ConfigError, match=said):
        _arguments("resume_sweep=sweep")
    assert not is_resumable(Path("sweep"))


def test_a_long_record_is_shown_in_part_and_one_without_a_seal_is_not_resumed() -> None:
    assert is_resumable(Path("sweep")) and not is_resumable(Path("nowhere"))
    (Path("sweep") / ".sweep.json").write_text(json.dumps(RECORD))
    assert not is_resumable(Path("sweep"))
    with pytest.raises(ConfigError, match="--config-name train seq=8,16: repeat its whole command"):
        _arguments("resume_sweep=sweep")
    tags = RECORD | {"overrides": ["seq=8,16", f"tags=[{'x' * 400}]"]}
    (Path("sweep") / ".sweep.json").write_text(json.dumps(tags))
    with pytest.raises(ConfigError, match=r"x\.\.\.: repeat its whole command") as refused:
        _arguments("resume_sweep=sweep")
    assert 40 < str(refused.value).count("x") < 80
    assert sweep_record._short("y" * 300) == "y" * 300
    assert sweep_record._short("y" * 301) == "y" * 300 + "..."


def test_a_record_of_somebody_else_says_neither_where_to_record_nor_more_than_is_shown() -> None:
    said = {
        "says where runs are recorded \\(logger.mlflow\\)": [
            'logger.mlflow={run_name:aaa,tracking_uri:"sqlite:////home/me/places.sqlite"}'
        ],
        "says where runs are recorded \\(logger\\)": ["logger={mlflow:{tracking_uri:a}}"],
        "says where runs are recorded \\(logger.mlflow.tracking_uri\\)": [
            "logger=mlflow",
            "logger.mlflow.tracking_uri=sqlite:////home/me/places.sqlite",
        ],
        "its 401 overrides are too long to be shown": ["seq=8,16"] + [f"tags=[{'a' * 40}]"] * 400,
    }
    for reason, overrides in said.items():
        (Path("sweep") / ".sweep.json").write_text(json.dumps(RECORD | {"overrides": overrides}))
        for trust in ("false", "true"):
            with pytest.raises(ConfigError, match=reason):
                _arguments("resume_sweep=sweep", f"trust_sweep={trust}")
        write_record(RECORD | {"overrides": overrides}, Path("sweep"))
        assert _arguments("resume_sweep=sweep")  # with the user's seal


def test_a_mapping_is_shown_whole_before_anything_is_resumed() -> None:
    hidden = f"data={{name:text,tokenizer:{'b' * 400},path:/home/me}}"
    record = RECORD | {"overrides": ["logger.tensorboard=null", hidden]}
    (Path("sweep") / ".sweep.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="path:/home/me.* logger.tensorboard=null: repeat"):
        _arguments("resume_sweep=sweep")


def test_a_command_in_a_message_is_quoted_for_the_shell() -> None:
    folder = Path("sw; touch PWNED")
    folder.mkdir()
    (folder / ".sweep.json").write_text(json.dumps(RECORD))
    for overrides in (["resume_sweep=sw; touch PWNED"], ["seq=9", "resume_sweep=sw; touch PWNED"]):
        with pytest.raises(ConfigError, match="'resume_sweep=sw; touch PWNED'"):
            _arguments(*overrides)


def test_a_record_has_folders_that_the_command_named_and_no_mode() -> None:
    sources = [
        {"path": path, "provider": provider}
        for path, provider in (
            ("pkg://hydra.conf", "hydra"),
            ("/own", "command-line"),
            ("/a", "hydra.searchpath in main"),
            ("/b", "hydra.searchpath in command-line"),
            ("/conf", "main"),
        )
    ]
    hydra = {
        "job": {"config_name": "train"},
        "runtime": {"config_sources": sources},
        "overrides": {
            "task": ["seq=8,16"],
            "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.sweep.dir=x"],
        },
    }
    assert make_record(OmegaConf.create({"hydra": hydra})) == {
        "config_name": "train",
        "config_dirs": ["/own", "/a", "/b"],
        "overrides": ["seq=8,16", "hydra/launcher=joblib"],
    }
    assert without_keys(
        OmegaConf.create(["~hydra.run.dir", "+hydra.x=1"]), sweep_record.MODE_KEYS
    ) == ["+hydra.x=1"]
