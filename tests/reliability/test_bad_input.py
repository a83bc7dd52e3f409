"""Whatever is typed and whatever a file holds: a right run or one clear sentence."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.runs import last, run
from xftrain import compose
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands.builder import build_data
from xftrain.config.compose import validate
from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError
from xftrain.launch import cli
from xftrain.train.same_run import flat

GROUPS = sorted(str(path.parent.relative_to(conf_dir())) for path in conf_dir().glob("*/**/*.yaml"))
KEYS = sorted(flat(validate(compose()).to_dict()))
FLAGS = ["-m", "--cfg", "--cfg job", "--config-name", "--config-dir nowhere", "--resolve", "-x"]


def _words() -> st.SearchStrategy[str]:
    """Overrides: known and unknown keys and groups, and any value, some with Hydra's syntax."""
    odd = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
    shaped = st.sampled_from(
        [
            "null",
            "[]",
            "{}",
            "[1,[2]]",
            "{a: 1}",
            "${seq}",
            "${x}",
            "${oc.env:HOME}",
            "a,b",
            "1e999",
        ]
        + ["-1", "0", "nan", "true", "naive", "'", '"', "\\", "glob(*)", "range(1,3)", "_target_"]
    )
    number = st.one_of(st.integers(), st.floats(width=32)).map(str)
    value = st.one_of(shaped, number, odd)
    key = st.one_of(st.sampled_from(KEYS), st.sampled_from(GROUPS), odd)
    prefix = st.sampled_from(["", "", "", "+", "++", "~"])
    override = st.builds(lambda p, k, v: f"{p}{k}={v}", prefix, key, value)
    return st.one_of(override, override, override, odd, st.sampled_from(FLAGS))


class _Words:
    """Command lines, drawn by hypothesis, tried in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder, self.codes = patch, folder, list[int]()
        self.num_told = 0  # refused in a sentence
        patch.chdir(folder)
        patch.setattr(cli, "command_of", lambda cfg: self._run)
        patch.setattr("xftrain.multirun.jobs.start", self._started)

    def _run(self, cfg: Any, run_dir: Path, checked: Any, reserved: Any) -> dict[str, Any]:
        validate(cfg)
        return {"metrics": {}}

    def _started(self, *_: Any) -> Any:
        raise ConfigError("no job is started here.")

    def try_(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        argv = [part for word in words for part in (word.split() if word in FLAGS else [word])]
        self.patch.setattr(sys, "argv", ["xftrain", *argv])
        capsys.readouterr()
        try:
            code = cli.main()
        except SystemExit as ended:  # --help and the like, by argparse
            code = int(ended.code or 0)
        self.codes.append(code)
        said = capsys.readouterr().err
        assert "Traceback" not in said, argv
        assert code in (0, 1, 2), argv
        if code:  # 1 is of a sweep whose jobs were refused
            assert len(said) < 3000, argv
            told = any(line.startswith("xftrain: ") for line in said.splitlines())
            assert told, (argv, said)
            self.num_told += 1


def test_any_command_line_runs_or_is_refused_in_a_sentence(
    tmp_path, monkeypatch, capsys, amount, record
):
    tried = _Words(monkeypatch, tmp_path)
    count = amount(40, 540)

    @settings(max_examples=count)
    @given(st.lists(_words(), min_size=1, max_size=4))
    def check(words: list[str]) -> None:
        tried.try_(words, capsys)

    check()
    bad = sum(code != 0 for code in tried.codes)
    assert bad > count / 2
    record("bad command line, generated", bad, tried.num_told)
    assert tried.num_told == bad


# ---- corpora


def _corpus(draw: random.Random, folder: Path) -> None:
    """Files of many kinds of bytes, some of them damaged text."""
    text = "".join(draw.choice("ab c\nd é日🎉") for _ in range(draw.randrange(0, 4000))).encode()
    for number in range(draw.randrange(1, 4)):
        content = bytearray(text)
        for _ in range(draw.randrange(0, 8)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        kinds = [
            bytes(content),
            bytes(content[: draw.randrange(len(content) + 1)]),
            draw.randbytes(draw.randrange(3000)),
            b"",
            b"\xff\xfe" + bytes(content),
            b"\0" * 100,
        ]
        (folder / f"{number}.txt").write_bytes(draw.choice(kinds))


def test_any_corpus_is_read_or_refused_in_a_sentence(tmp_path, monkeypatch, amount, record):
    count, fault = amount(8, 100), "damaged corpus, generated"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(count):
        record(fault, 1, 0)
        draw = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        _corpus(draw, folder)
        words = ["data=text", f"data.path={folder}", "seq=16", "batch_tokens=32"]
        words.append(f"data.packing={draw.choice(['true', 'false'])}")
        if draw.random() < 0.3:
            words += ["data.tokenizer=bpe", "data.vocab_size=260"]
        try:
            data = build_data(validate(compose(*words)))
            batches = [data.batch("train", 0), data.batch("train", 9), data.batch("val", 0)]
        except ConfigError as refused:
            said = str(refused)
            assert said.endswith(".") and "\n" not in said and len(said) < 1000
        else:
            for batch in batches:
                assert 0 <= int(batch.tokens_BM.min()) <= int(batch.tokens_BM.max())
                assert int(batch.tokens_BM.max()) < data.vocab_size
        record(fault, 0, 1)


# ---- checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return last(run_dir)


def test_any_damage_to_a_checkpoint_is_found_or_does_no_harm(tmp_path, good, amount, record):
    count, path = amount(25, 100), tmp_path / "bad.ckpt"
    fault = "damaged checkpoint, generated"
    whole, content = read_checkpoint(good), good.read_bytes()
    for number in range(count):
        record(fault, 1, 0)
        draw = random.Random(number)
        bad = bytearray(content)
        at = draw.randrange(len(bad))
        match number % 4:
            case 0:
                bad[at] ^= 1 << draw.randrange(8)
            case 1:
                del bad[at:]
            case 2:
                del bad[at : at + draw.randrange(1, 200)]
            case _:
                bad[at : at + 50] = draw.randbytes(50)
        path.write_bytes(bad)
        try:
            read = read_checkpoint(path)
        except ConfigError as refused:
            assert str(refused).startswith(f"ckpt={path} ") and "\n" not in str(refused)
        else:  # between the parts of the archive
            for name, weight in whole["state_dict"].items():
                assert torch.equal(weight, read["state_dict"][name]), (number, name)
        record(fault, 0, 1)
