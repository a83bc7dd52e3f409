"""Files of options that somebody else wrote are not read where that would never end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.errors import ConfigError
from xftrain.utils.yaml_files import refuse_yaml_bombs

LAUGHS = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def options(tmp_path: Path) -> Path:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    return tmp_path / "own"


def test_a_bomb_behind_a_link_to_a_folder_is_found(options: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "default.yaml").write_text(LAUGHS)
    (options / "local").symlink_to("../elsewhere")
    with pytest.raises(ConfigError, match=r"local/default\.yaml has aliases"):
        refuse_yaml_bombs([options])


def test_links_in_a_circle_are_followed_once(options: Path) -> None:
    (options / "experiment" / "again").symlink_to("..")
    (options / "experiment" / "e.yaml").write_text("seq: 8\n")
    refuse_yaml_bombs([options, options / "nowhere"])


@pytest.mark.parametrize(
    "number", ["1" + ":11" * 400_000, "+1_0" + ":59" * 50 + ".5", "1" + ":0" * 99]
)
def test_a_number_in_base_60_without_end_is_refused(options: Path, number: str) -> None:
    (options / "experiment" / "e.yaml").write_text(f"seed: {number}\n")
    with pytest.raises(ConfigError, match=r"e\.yaml has a number in base 60"):
        refuse_yaml_bombs([options])


def test_other_text_with_colons_and_digits_is_read_at_once(options: Path) -> None:
    text = "# 12:34:56\nlink: fe80:0:0:1:2:3:4:5\nlong: '" + "1" * 2_000_000 + "'\n"
    (options / "experiment" / "e.yaml").write_text(text)
    began = time.monotonic()
    refuse_yaml_bombs([options])
    assert time.monotonic() - began < 5


def test_a_bomb_in_a_folder_of_the_search_path_is_found(
    options: Path, command: Callable[..., Ended]
) -> None:
    (options / "experiment" / "bomb.yaml").write_text(f"# @package _global_\n{LAUGHS}")
    began = time.monotonic()
    ended = command(f"hydra.searchpath=[file://{options}]", "experiment=bomb", "--cfg", "job")
    assert "bomb.yaml has aliases" in one_sentence(ended, 2)
    assert time.monotonic() - began < 5
