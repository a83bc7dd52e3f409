"""Arguments and files of options that would end in a traceback or take the machine with them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.command_line import Ended, Runner, one_sentence
from xftrain.config.compose import compose, validate
from xftrain.config.overrides import literal, quoted
from xftrain.errors import ConfigError

Command = Callable[..., Ended]

TEXT = st.one_of(st.text(), st.text(alphabet="\\\"'${}ab \n,=[]()"))


@settings(max_examples=300)
@given(TEXT)
@example("\\")
@example('a\\"b\\\\')
@example("x${y}")
@example("a\\${y}\\\\${y}\\")
def test_a_quoted_value_is_that_value(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    assert parser.parse_override(f"key={quoted(text)}").value() == text
    value = parser.parse_override(f"key={literal(text)}").value()
    assert text == "???" or OmegaConf.create({"key": value, "y": 1}).key == text


@settings(max_examples=20)  # each composes: 0.15 s
@given(TEXT.filter(lambda text: text != "???"))
def test_a_quoted_value_is_composed_as_that_value(text: str) -> None:
    assert list(compose(f"tags=[{literal(text)}]").tags) == [text]


DEEP = {
    "a list": "tags=" + "[" * 3000 + "]" * 3000,
    "a mapping": "+callbacks.x=" + "{a:" * 3000 + "1" + "}" * 3000,
    "calls": "seq=" + "int(" * 3000 + "1" + ")" * 3000,
    "an interpolation": "tags=['" + "${" * 800 + "seq" + "}" * 800 + "']",
    "a key": "+callbacks." + "x." * 3000 + "x=1",
    "shallow enough to be read": "tags=" + "[" * 60 + "]" * 60,
    "moderate": "+callbacks.x=" + "{a:" * 90 + "1" + "}" * 90,
    "a long word": "seq=" + "x" * 100_000,
    "a long key": "x" * 100_000 + "=1",
    "a large number": "seq=" + "9" * 5000,
    "a large exponent": "seq=1e999",
    "no UTF-8": "tags=[\udcff]",
    "a key that is no UTF-8": "\udcff=1",
    "a NUL": 'data.path="a\0b"',
    "a folder with a NUL": 'hydra.run.dir="a\0b"',
    "a folder of a sweep with a NUL": 'hydra.sweep.dir="a\0b"',
    "a long option": "model/attn=" + "x" * 5000,
    "one of a list": "callbacks=[default," + "x" * 5000 + "]",
    "a long name of a configuration": "--config-name=" + "x" * 5000,
    "jobs without end": "seq=range(0,10000000000000)",
    "an endless range": "seq=range(0,inf)",
    "an escape sequence": "seq=\x1b[31m",
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_what_cannot_be_read_is_one_sentence(
    command: Command, runner: Runner, kind: str, flags: tuple[str, ...]
) -> None:
    if kind in ("a NUL", "shallow enough to be read") and flags:
        pytest.skip("it is the job that is refused")
    if ("run.dir" in DEEP[kind] and flags) or ("sweep.dir" in DEEP[kind] and not flags):
        pytest.skip("it is not used")
    ended = command(*flags, *["data=text"] * (kind == "a NUL"), DEEP[kind])
    said = one_sentence(ended, 2)
    assert len(said) < 2500 and said.isprintable() and runner.calls == []


@pytest.mark.parametrize("flags", [(), ("-m",)])
@pytest.mark.parametrize("home", ["~nosuchuser/x", "", "~"])
def test_a_sweep_that_is_not_there_is_said(command: Command, tmp_path: Path, flags, home) -> None:
    (tmp_path / ".sweep.json").write_text('{"overrides": []}')  # '' is no name for this folder
    assert "resume_sweep" in one_sentence(command(*flags, f"resume_sweep={home}"), 2)


@pytest.mark.parametrize("name", ["x${y}", "${canary:}", "\udcff"])
def test_a_working_folder_is_not_resolved(
    command: Command, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    called: list[str] = []
    OmegaConf.register_new_resolver("canary", lambda: called.append("x") or "x", replace=True)
    (tmp_path / name / "own").mkdir(parents=True)
    said = one_sentence(command("--config-dir", str(tmp_path / name / "own"), "seq=8"), 2)
    assert "name" in said and said.isprintable()
    monkeypatch.chdir(tmp_path / name)
    for flags in ((), ("-m",)):
        assert "name" in one_sentence(command(*flags, "seq=8"), 2)
    assert runner.calls == [] and called == [] and os.listdir() == ["own"]
    OmegaConf.clear_resolver("canary")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "aliases that multiply": BOMB,
    "merged aliases": BOMB.replace("[", "{").replace("]", "}").replace("x", "x: 1"),
    "an alias of itself": "a: &a [*a]\n",
    "a deep list": "tags: " + "[" * 3000 + "]" * 3000 + "\n",
    "a deep mapping": "".join("  " * n + f"a{n}:\n" for n in range(700)),
    "a tag that names code": "tags: !!python/object/apply:os.mkdir [executed]\n",
    "control characters": "tags: [\x1b]\n",
    "a NUL": "tags: [\0]\n",
    "no UTF-8": b"tags: [\xff]\n",
    "another kind": "- a\n- b\n",
    "two documents": "seq: 8\n---\nseq: 16\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_of_options_is_one_sentence(
    command: Command, runner: Runner, tmp_path: Path, kind: str
) -> None:
    content = FILES[kind]
    path = tmp_path / "own" / "experiment" / "evil.yaml"
    path.parent.mkdir(parents=True)
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(b"# @package _global_\n" + content)
    began = time.monotonic()
    said = one_sentence(command("--config-dir", "own", "experiment=evil"), 2)
    assert said.isprintable() and runner.calls == [] and not (tmp_path / "executed").exists()
    assert time.monotonic() - began < 60
    with pytest.raises(ConfigError):
        validate(compose("experiment=evil", config_dir=tmp_path / "own"))


def test_a_pipe_among_options_is_not_waited_for(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own" / "optim").mkdir(parents=True)
    os.mkfifo(tmp_path / "own" / "optim" / "x.yaml")
    said = one_sentence(command("--config-dir", "own", "optim=x"), 2)
    assert "neither a file nor a folder" in said


def test_ordinary_aliases_are_taken(command: Command, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndata: {batch_size: &n 4}\nseq: *n\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    (tmp_path / "own" / "experiment" / "link.yaml").symlink_to("mine.yaml")
    (tmp_path / "own" / "experiment" / "gone.yaml").symlink_to("nowhere.yaml")
    assert command("--config-dir", "own", "experiment=link").code == 0
    assert [seq for seq, _ in runner.calls] == [4]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["behind a link", "a number in base 60"])
def test_a_file_that_takes_for_ever_is_refused_wherever_it_is_read(
    command: Command, runner: Runner, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / ("elsewhere" if kind == "behind a link" else "own/local")
    place.mkdir(parents=True)
    (tmp_path / "own").mkdir(exist_ok=True)
    if kind == "behind a link":
        (tmp_path / "own" / "local").symlink_to(place)
        (tmp_path / "own" / "up").symlink_to("..")  # a circle
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    text = "seq: 1" + ":11" * 400_000 if kind != "behind a link" else "a0: &a0 [x]\n" + laughs
    (place / "default.yaml").write_text(f"# @package _global_\n{text}\n")
    said = one_sentence(command("--config-dir", "own"), 2)
    assert "aliases" in said if kind == "behind a link" else "a number in base 60" in said
    (place / "default.yaml").write_text("# @package _global_\ntags: ['12:34:56', '1:2:3']\n")
    assert command("--config-dir", "own").code == 0
