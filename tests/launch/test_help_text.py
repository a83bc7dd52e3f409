"""`--help` says of every option what it is, and of every value what it may be."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.command_line import Ended
from xftrain.config.registry import conf_dir
from xftrain.config.root_schema import COMMANDS
from xftrain.config.schema import framework_schemas
from xftrain.launch.help_text import with_details


@pytest.fixture(scope="module")
def groups() -> dict[str, list[str]]:
    files = sorted(path for path in conf_dir().glob("*/**/*.yaml") if "hydra" not in path.parts)
    found: dict[str, list[str]] = {}
    for path in files:
        group = path.parent.relative_to(conf_dir()).as_posix()
        found.setdefault(group, []).append(path.stem)
    return {group: names for group, names in found.items() if "/hydra" not in group}


def test_every_option_is_explained(command: Callable[..., Ended], groups) -> None:
    ended = command("--help")
    assert ended.code in (0, None), ended.err
    for group, names in groups.items():
        part = ended.out.partition(f"\n{group}:\n")[2]
        for name in names:
            assert re.search(rf"^  {name} +\S", part, re.M), f"{group}={name} is not explained"
    for name in set(COMMANDS) - {"root"}:
        assert re.search(rf"xftrain --config-name {name}\b.* {{2}}\S", ended.out), name
    assert max(map(len, ended.out.splitlines())) <= 112  # the examples of commands are the longest


def test_values_say_what_they_may_be(command: Callable[..., Ended]) -> None:
    lines = command("--help", "model.bias=alibi", "optim=adafactor").out.splitlines()
    for line in (
        "seq: 64  # an integer >= 1",
        "compile: false  # true or false or cudagraphs",
        "    impl: folded  # one of folded, dense",
        "    window: null  # an integer >= 1 or null",
        "  clip_threshold: 1.0  # a number > 0",
        "    pattern: null  # names, as [near,far] with +model.layers.near.bias=window and so on",
        "  precision: auto  # one of auto, 32-true, 16-mixed, bf16-mixed, bf16-true",
        "    style: auto  # one of auto, rich, line, none",
    ):
        assert line in lines, line
    assert "deterministic: false" in lines  # which says all itself


def test_what_is_no_option_stays_as_it_is() -> None:
    text = "mine: one, two\nConfiguration.\n\nown:\n  _target_: mine.One\n  size: 3\n- seq: 3\n"
    assert with_details(text, framework_schemas()) == text


def test_an_option_of_ones_own_is_listed_without_a_word(command, tmp_path) -> None:
    (tmp_path / "own" / "model" / "bias").mkdir(parents=True)
    (tmp_path / "own" / "model" / "bias" / "mine.yaml").write_text("_target_: mine.Bias\n")
    assert "\n  mine\n" in command("--config-dir", "own", "--help").out
