"""The sources of a mixture are typed like any other value, and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.config.compose import compose, validate
from xftrain.config.mixture_sources import checked_sources
from xftrain.config.overrides import slug
from xftrain.errors import ConfigError
from xftrain.multirun.recorded_overrides import plain_overrides


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return [
        "data=mixture",
        f"data.sources.code.path={tmp_path / 'a'}",
        "data.sources.code.weight=0.7",
        f"data.sources.prose.path={tmp_path / 'b'}",
        "data.sources.prose.weight=2",
    ]


def test_sources_are_typed_without_a_plus(words: list[str], tmp_path: Path) -> None:
    sources = validate(compose(*words)).data.node["sources"]
    expected = {"path": str(tmp_path / "a"), "weight": 0.7, "text_key": None, "val_path": None}
    assert sources["code"] == expected and list(sources) == ["code", "prose"]
    assert validate(compose(*words, "data.sources.code=null")).data.node["sources"].keys() == {
        "prose"
    }
    whole = f"data.sources={{x: {{path: {tmp_path}, weight: 1}}}}"
    assert validate(compose("data=mixture", whole)).data.node["sources"].keys() == {"x"}


def test_sources_come_from_a_file_of_the_users_own(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(
        f"defaults: [mixture]\nsources:\n  code: {{path: {tmp_path}, weight: 1}}\n"
    )
    typed = ["data=mine", "data.sources.code.weight=3"]
    cfg = validate(compose(*typed, config_dir=tmp_path / "conf"))
    assert cfg.data.node["sources"]["code"]["weight"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.sources.code.weight=0", "data.sources.code.weight must be a number > 0, got 0."),
        ("data.sources.code.weight=-1", "data.sources.code.weight must be a number > 0, got -1."),
        ("data.sources.code.weight=nan", "data.sources.code.weight must be a number > 0 and fin"),
        ("data.sources.code.weight=x", "data.sources.code.weight must be a number > 0, got 'x'."),
        ("data.sources.code.weigth=1", "data.sources.code.weigth is not a key of data.sources.co"),
        ("data.sources.new.path=.", "data.sources.new.weight has no value; set it to a number > "),
        ("data.sources.new.weight=1", "data.sources.new.path has no value; set it to a string"),
        ("data.sources.code.path=/not/there", "data.sources.code.path must be an existing file"),
        ("data.sources.code=3", "data.sources.code must be a mapping with path and weight, got 3."),
        ("data.sources=3", "data.sources must be a mapping of names to sources, each with path"),
    ],
)
def test_a_wrong_source_is_refused_in_one_sentence(
    words: list[str], change: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(compose(*words, change))
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_sources_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources must name a source, as "):
        validate(compose("data=mixture"))
    for name in ("", "a-b", "_target_", "a b", "a/b", "\x1b[31m", 3, "x" * 65):
        with pytest.raises(ConfigError, match=r"must have names of at most 64 letters") as refused:
            checked_sources({name: {"path": ".", "weight": 1}})
        assert str(refused.value).isprintable()


def test_sources_of_another_option_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources is not a key of data=counting"):
        validate(compose("data.sources.code.weight=1"))


def test_help_and_a_command_know_sources(command: Callable[..., Ended], words: list[str]) -> None:
    shown = command("data=mixture", "--help").out
    assert "sources: {}  # a mapping of names to sources, each with path and weight" in shown
    ended = command(*words, "data.sources.code.weight=-1")
    said = "data.sources.code.weight must be a number > 0, got -1."
    assert one_sentence(ended, 2) == said


def test_a_sweep_of_weights_can_be_resumed() -> None:
    recorded = ["data=mixture", "++data.sources.code.path=a", "++data.sources.code.weight=1,2"]
    assert plain_overrides("train", recorded) == recorded
    assert slug("++data.sources.code.weight=1") == "_weight=1"
