"""A resumed run trains on what its checkpoint was trained on, or says what has changed."""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.commands.test_sample import sample
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.data.tokens.vocabulary import TOKENIZER_FILE, Integers
from xftrain.errors import ConfigError
from xftrain.train import same_data
from xftrain.train.distributed import all_gather_values
from xftrain.train.same_data import check_data

BYTES = ("data=text", "seq=32", "batch_tokens=128", "max_steps=1")
BPE = (*BYTES, "data.tokenizer=bpe", "data.vocab_size=280")


def corpus(folder: Path, *, words: str = "the same words again and again") -> Path:
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"{number} {words}\n" * 20)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints of a run with byte tokens and of one with BPE tokens."""
    folder = tmp_path_factory.mktemp("begun")
    path = f"data.path={corpus(folder / 'corpus')}"
    run(folder / "bytes", *BYTES, path)
    run(folder / "bpe", *BPE, path)
    return {"bytes": last(folder / "bytes"), "bpe": last(folder / "bpe")}


def copy_of(begun: dict[str, Path], folder: Path) -> Path:
    """Writes the same corpus to another folder with other modification times."""
    shutil.copytree(begun["bytes"].parents[2] / "corpus", folder)
    for path in folder.iterdir():
        os.utime(path, ns=(0, 10**18))
    return folder


@pytest.mark.parametrize(("kind", "words"), [("bytes", BYTES), ("bpe", BPE)])
def test_a_corpus_may_move(
    tmp_path: Path, begun: dict[str, Path], kind: str, words: tuple[str, ...]
) -> None:
    path = f"data.path={copy_of(begun, tmp_path / 'moved')}"
    resumed = (f"ckpt={begun[kind]}", "max_steps=2")
    assert run(tmp_path / "run", *words, path, *resumed)["steps"] == 2
    # with its vocabulary, which a checkpoint of this folder needs
    assert (last(tmp_path / "run").parent / TOKENIZER_FILE).exists() is (kind == "bpe")


def test_one_other_byte_is_refused_or_allowed_by_name(
    tmp_path: Path, begun: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    moved = copy_of(begun, tmp_path / "moved")
    with (moved / "3.txt").open("r+b") as file:
        file.write(b"#")
    words = (*BYTES, f"data.path={moved}", f"ckpt={begun['bytes']}", "max_steps=2")
    with pytest.raises(ConfigError, match=r"data\.path"):
        run(tmp_path / "run", *words)
    # the place alone, and then the text at that place
    in_place = begun["bytes"].parents[2] / "corpus" / "3.txt"
    content = in_place.read_bytes()
    in_place.write_bytes(b"#" + content[1:])
    try:
        here = (*BYTES, f"data.path={in_place.parent}", f"ckpt={begun['bytes']}", "max_steps=2")
        with pytest.raises(ConfigError) as refused:
            run(tmp_path / "run", *here)
        assert "text of data.path=" in str(refused.value)
        assert "its vocabulary is the same" in str(refused.value)
        assert str(refused.value).endswith("allow other content with ckpt_allow=[data.path].")
        assert run(tmp_path / "run", *here, "ckpt_allow=[data.path]")["steps"] == 2
    finally:
        in_place.write_bytes(content)
    assert "data has other content, as ckpt_allow permits" in caplog.text


def test_another_vocabulary_is_never_allowed(tmp_path: Path, begun: dict[str, Path]) -> None:
    # the run went on with other token ids, and its loss rose from 2.2 to 8.7
    other = corpus(tmp_path / "other", words="zebra quartz jazz vex fjord waltz")
    for path in (other, copy_of(begun, tmp_path / "moved")):
        words = [*BPE, f"data.path={path}", f"ckpt={begun['bpe']}", "max_steps=2"]
        if path.name == "moved":
            words.append("data.vocab_size=270")
        with pytest.raises(ConfigError, match="ckpt was trained with another vocabulary, bpe of"):
            run(tmp_path / "run", *words, "ckpt_allow=[data]")


def test_other_options_of_data_need_no_second_permission(
    tmp_path: Path, begun: dict[str, Path]
) -> None:
    words = (*BYTES, f"data.path={begun['bytes'].parents[2] / 'corpus'}", "max_steps=2")
    more = ("data.val_fraction=0.5", f"ckpt={begun['bytes']}", "ckpt_allow=[data.val_fraction]")
    assert run(tmp_path / "run", *words, *more)["steps"] == 2


def test_a_checkpoint_says_by_which_code_it_was_saved(
    tmp_path: Path,
    begun: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    saved = read_checkpoint(begun["bytes"])["xftrain"]["code_version"]
    monkeypatch.setattr(same_data, "code_version", lambda: "9.9.9+0")
    path = f"data.path={begun['bytes'].parents[2] / 'corpus'}"
    run(tmp_path, *BYTES, path, f"ckpt={begun['bytes']}", "max_steps=2")
    assert f"saved by xftrain {saved}, resumed by 9.9.9+0" in caplog.text


# ---- a data source of the user's own

OWN = """
    from xftrain.data.counting import Counting
    from xftrain.data.tokens.vocabulary import Integers

    class Bare:
        vocab_size, num_val_batches, stop_at_accuracy = 64, 2, None

        def __init__(self, seq, batch_size, seed, world_size):
            self.inner = Counting(seq, batch_size, seed)

        def batch(self, split, step, rank=0):
            return self.inner.batch(split, step, rank)

        def decode(self, tokens):
            return str(tokens)

        def num_label_bytes(self, labels):
            return None

        def baseline(self):
            return {}

    class Complete(Bare):
        vocabulary = Integers(64)
"""


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_data.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    for name in ("Bare", "Complete"):
        text = f"_target_: own_data.{name}\nbatch_size: null\n"
        (tmp_path / "conf" / "data" / f"{name.lower()}.yaml").write_text(text)
    return tmp_path / "conf"


def test_data_of_ones_own_trains_without_a_vocabulary_and_says_what_is_missing(
    tmp_path: Path, config_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(tmp_path / "run", "data=bare", "max_steps=1", config_dir=config_dir)
    assert caplog.text.count("Bare has no digest(), so a resumed run cannot tell") == 1
    resumed = ("data=bare", "max_steps=2", "ckpt=auto")
    assert run(tmp_path / "run", *resumed, config_dir=config_dir)["steps"] == 2
    assert "it is unknown whether the content of data has changed" in caplog.text
    with pytest.raises(ConfigError, match=r"add the attribute vocabulary to.*max_steps=3"):
        sample(tmp_path / "sample", last(tmp_path / "run"))


def test_data_of_ones_own_with_a_vocabulary_can_be_sampled_from(
    tmp_path: Path, config_dir: Path
) -> None:
    run(tmp_path / "run", "data=complete", "max_steps=1", config_dir=config_dir)
    text = sample(tmp_path / "sample", last(tmp_path / "run"), "prompt='1 2'", "num_tokens=2")
    assert text.startswith("prompt:\n1 2\n")


def test_ranks_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data: Any = SimpleNamespace(digest=lambda: "a" * 64)
    assert all_gather_values("x") == ["x"]
    check_data(data)
    monkeypatch.setattr(same_data, "all_gather_values", lambda value: [value, "b" * 64])
    with pytest.raises(ConfigError, match="rank 1 has other content than rank 0"):
        check_data(data)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"digest": "abc"},
            r"digest\(\) of SimpleNamespace must be a method that returns a string",
        ),
        ({"digest": lambda: 5}, r"digest\(\) of SimpleNamespace must be a method that returns"),
        ({"vocabulary": object()}, "the vocabulary of SimpleNamespace has no kind"),
        ({"vocabulary": Integers(60)}, "has vocab_size 64, and its vocabulary has 60: make them"),
    ],
)
def test_data_of_ones_own_that_breaks_the_protocol_is_refused_before_it_trains(
    parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_data(SimpleNamespace(vocab_size=64, **parts))
