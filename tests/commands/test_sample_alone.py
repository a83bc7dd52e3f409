"""Sampling needs a checkpoint and its vocabulary, and opens nothing that a checkpoint names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.test_sample import sample
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import builder
from xftrain.data.tokens.vocabulary import TOKENIZER_FILE
from xftrain.errors import ConfigError

WORDS = "\x1b]0;PWNED\x07\x1b[2J the same words, again and again.\n"
TEXT = ("data=text", "max_steps=1", "seq=32", "batch_tokens=128")


def trained(folder: Path, *words: str) -> Path:
    """A checkpoint whose corpus and token cache are gone."""
    corpus = folder / "corpus.txt"
    corpus.write_text(WORDS * 400)
    place = (f"data.path={corpus}", f"data.cache_dir={folder / 'cache'}")
    run(folder / "run", *TEXT, *place, *words)
    corpus.unlink()
    shutil.rmtree(folder / "cache")
    return last(folder / "run")


@pytest.fixture(scope="module")
def in_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def in_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    return trained(folder, "data.tokenizer=bpe", "data.vocab_size=280")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_sample_needs_neither_the_corpus_nor_the_token_cache(
    tmp_path: Path, in_bytes: Path, in_bpe: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    ckpt = {"bytes": in_bytes, "bpe": in_bpe}[kind]
    caplog.set_level("INFO")
    text = sample(tmp_path, ckpt, "num_tokens=3")
    # the beginning of the held-out text, which has control characters
    assert text.startswith("prompt:\n<|end|>") or "\\x1b" in text
    assert sample(tmp_path, ckpt, r"prompt='\x1b[2J'").startswith("prompt:\n\\x1b[2J\ncont")
    assert "\x1b" not in caplog.text
    assert not (ckpt.parents[2] / "cache").exists()


def altered(path: Path, ckpt: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Writes a tampered checkpoint to a folder with the vocabulary."""
    held = read_checkpoint(ckpt)
    change(held)
    path.mkdir()
    torch.save(held, path / "foreign.ckpt")
    if (ckpt.parent / TOKENIZER_FILE).exists():
        shutil.copy(ckpt.parent / TOKENIZER_FILE, path)
    return path / "foreign.ckpt"


def test_no_path_of_a_checkpoint_is_opened(
    tmp_path: Path, in_bytes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its data.path could name private keys, and its cache_dir where to copy them
    secret = tmp_path / "private"
    secret.mkdir()

    def name_places(held: dict[str, Any]) -> None:
        data = held["xftrain"]["config"]["data"]
        data["path"], data["cache_dir"] = str(secret), str(tmp_path / "copies")
        held["xftrain"]["config"]["ckpt"] = str(secret)

    ckpt = altered(tmp_path / "foreign", in_bytes, name_places)
    stat = Path.stat

    def watched(self: Path, **options: Any) -> Any:
        assert not self.is_relative_to(secret), "a path of the checkpoint was looked at"
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", watched)
    assert sample(tmp_path / "sample", ckpt, "num_tokens=3")
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.update(prompt=[1, 10**9]), "ckpt holds no prompt to continue"),
        (lambda held: held.update(prompt=[0] * 10**5), "ckpt holds no prompt to continue"),
        (lambda held: held.update(prompt="1 2 3"), "ckpt holds no prompt to continue"),
        (lambda held: held.update(vocabulary=[1]), "damaged description of its vocabulary"),
        (lambda held: held["vocabulary"].update(digest="0"), "not the vocabulary that ckpt was"),
        (lambda held: held["config"]["model"].update(num_layers=10**9), "fewer weights than"),
        (
            lambda held: held["config"]["model"].update(dim=2**62),
            "model.dim must be an integer >= 1",
        ),
        (lambda held: held["config"]["model"].update(dim=2**20), "ckpt holds another model"),
        (lambda held: held["config"].update(model=3), "model is the plain value 3"),
        (lambda held: held["config"].pop("model"), "model is missing"),
    ],
)
def test_a_hostile_checkpoint_is_one_sentence(
    tmp_path: Path, in_bytes: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    ckpt = altered(tmp_path / "foreign", in_bytes, lambda held: change(held["xftrain"]))
    with pytest.raises(ConfigError, match=said) as refused:
        sample(tmp_path / "sample", ckpt)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_the_name_of_a_tensor_is_shown_as_escapes(tmp_path: Path, in_bytes: Path) -> None:
    def name(held: dict[str, Any]) -> None:
        held["state_dict"] = {"\x1b]0;PWNED\x07\nall is well": torch.zeros(1), **held["state_dict"]}

    with pytest.raises(ConfigError, match="ckpt holds another model") as refused:
        sample(tmp_path / "sample", altered(tmp_path / "foreign", in_bytes, name))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["model.x{}", "model.blocks.{}.norm_attn.weight"])
def test_no_layers_are_built_that_the_checkpoint_has_no_weights_for(
    tmp_path: Path, in_bytes: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # a file of 562 KB had 20,000 layers built, in minutes
    def claim(held: dict[str, Any]) -> None:
        held["xftrain"]["config"]["model"]["num_layers"] = 50
        held["state_dict"] |= {name.format(n): torch.zeros(0) for n in range(1, 50)}

    assemble = builder.assemble

    def watched(model: Any, num_tokens: int) -> Any:
        assert model.num_layers == 1, "all layers are built"
        return assemble(model, num_tokens)

    monkeypatch.setattr(builder, "assemble", watched)
    with pytest.raises(ConfigError, match="ckpt holds another model"):
        sample(tmp_path / "sample", altered(tmp_path / "foreign", in_bytes, claim))


def test_a_configuration_nested_too_deeply_is_one_sentence(tmp_path: Path, in_bytes: Path) -> None:
    held = read_checkpoint(in_bytes)
    deep: Any = 1
    for _ in range(5000):
        deep = {"a": deep}
    held["xftrain"]["config"]["model"]["ffn"] = deep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xftrain.commands.trained_model.read_checkpoint", lambda path: held)
        with pytest.raises(ConfigError, match="nested too deeply"):
            sample(tmp_path, in_bytes)


# ---- without the vocabulary


def test_a_checkpoint_without_its_file_says_where_it_is(tmp_path: Path, in_bpe: Path) -> None:
    shutil.copy(in_bpe, tmp_path / "alone.ckpt")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing.*copy it from the check"):
        sample(tmp_path / "sample", tmp_path / "alone.ckpt")


def as_before(held: dict[str, Any]) -> None:
    """Converts a checkpoint to the form from before vocabularies were saved."""
    for key in ("vocabulary", "prompt", "data_digest", "code_version"):
        held["xftrain"].pop(key, None)


def test_checkpoints_from_before_vocabularies_were_saved(
    tmp_path: Path, in_bytes: Path, in_bpe: Path
) -> None:
    old = altered(tmp_path / "bytes", in_bytes, as_before)
    assert sample(tmp_path / "sample", old, "prompt=again", "num_tokens=3").startswith(
        "prompt:\nagain\ncont"
    )
    with pytest.raises(ConfigError, match="ckpt holds no prompt to continue: give one"):
        sample(tmp_path / "sample", old)
    old = altered(tmp_path / "bpe", in_bpe, as_before)
    with pytest.raises(ConfigError, match="resume its run with max_steps=2 or more"):
        sample(tmp_path / "sample", old, "prompt=again")


def test_counting_from_before_vocabularies_were_saved(tmp_path: Path) -> None:
    run(tmp_path / "run", "max_steps=1")
    old = altered(tmp_path / "old", last(tmp_path / "run"), as_before)
    assert sample(tmp_path / "sample", old, "prompt='3 4'", "num_tokens=1").startswith(
        "prompt:\n3 4\ncont"
    )
