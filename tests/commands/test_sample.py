"""`--config-name sample`: what a checkpoint's model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import xftrain
from tests.train.runs import last, result_of, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError
from xftrain.model.prompts import sample_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "max_steps=60", "optim.lr=0.02", "data.stop_at_accuracy=null", "model.pos=rope")
    return last(folder)


def sample(run_dir: Path, ckpt: Path | None, *words: str) -> str:
    named = [f"ckpt={ckpt}"] if ckpt else []
    cfg = xftrain.compose(*named, "accelerator=cpu", *words, config_name="sample")
    result: dict[str, Any] = xftrain.run(cfg, run_dir)
    assert (result["status"], result["steps"], result["device"]) == ("completed", 0, "cpu")
    return (run_dir / "sample.txt").read_text()


def test_the_model_goes_on_from_the_prompt(tmp_path: Path, trained: Path) -> None:
    text = sample(tmp_path, trained, "prompt='61 62'", "temperature=0", "num_tokens=5")
    assert text == sample_text("61 62", "63 0 1 2 3") + "\n"


def test_without_a_prompt_it_goes_on_from_held_out_data(tmp_path: Path, trained: Path) -> None:
    data = Counting(16, 8, seed=0)
    begins = data.decode(data.batch("val", 0).tokens_BM[0, :8].tolist())
    assert sample(tmp_path, trained).startswith(sample_text(begins, ""))


def test_the_seed_decides_what_is_drawn(tmp_path: Path, trained: Path) -> None:
    hot = ("temperature=5", "top_k=null")
    texts = [sample(tmp_path / str(n), trained, *hot, f"seed={n % 2}") for n in range(3)]
    assert texts[0] == texts[2] != texts[1]


def test_text_is_encoded_as_the_data_was(tmp_path: Path) -> None:
    words = ("data=text", "max_steps=1", "seq=64", "batch_tokens=256")
    (tmp_path / "corpus.txt").write_text("the same words, again and again. " * 400)
    run(tmp_path / "run", *words, f"data.path={tmp_path / 'corpus.txt'}")
    ckpt = last(tmp_path / "run")
    text = sample(tmp_path / "sample", ckpt, "prompt='again é'", "num_tokens=3")
    begins = sample_text("again é", "")
    assert text.startswith(begins) and len(text.strip()) > len(begins)


def test_a_model_with_few_positions_writes_less_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "run", "max_steps=1")
    text = sample(tmp_path / "sample", last(tmp_path / "run"), "prompt='1 2 3'", "num_tokens=99")
    assert len(text.rpartition(":\n")[2].split()) == 16 - 3 + 1
    assert "the model has positions for only 14 more tokens" in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prompt=abc"], "prompt must be numbers with blanks between them, got 'abc'"),
        (["prompt='3 64'"], "prompt must have numbers below 64, got 64"),
        (["prompt=''"], "the prompt is empty"),
        (["num_tokens=0"], "num_tokens must be an integer >= 1, got 0"),
        (["accelerator=tpu"], "accelerator must be one of auto, cpu, gpu, got 'tpu'"),
        (
            ["ckpt=nowhere.ckpt"],
            "ckpt must be an existing checkpoint file or Hugging Face folder, got 'nowhere.ckpt'",
        ),
        (["ckpt='~nobody-here/last.ckpt'"], "ckpt names a home folder that is not there"),
        (["ckpt=null"], "ckpt is missing: name the checkpoint, as"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, trained: Path, words: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        sample(tmp_path, trained, *words)
    assert result_of(tmp_path)["status"] == "refused"


def test_a_prompt_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", "max_steps=1")
    prompt = " ".join(["1"] * 17)
    with pytest.raises(ConfigError, match="^prompt must have at most 16 tokens, .*, got 17: "):
        sample(tmp_path / "sample", last(tmp_path / "run"), f"prompt='{prompt}'")


def test_classes_that_a_checkpoint_names_are_refused(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = read_checkpoint(trained)
    held["xftrain"]["config"]["model"]["ffn"] = {"_target_": "os.system"}
    monkeypatch.setattr("xftrain.commands.trained_model.read_checkpoint", lambda path: held)
    with pytest.raises(ConfigError, match="_target_: os.system names a class"):
        sample(tmp_path, trained)
