"""`--config-name export`: a folder that transformers loads offline, without code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import xftrain
from tests.commands.test_sample import sample
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import family_for
from xftrain.hugging_face.folder import read_folder

LLAMA = ("model.pos=rope", "model.norm=rmsnorm", "model.heads=mqa")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text("the same words, again and again.\n" * 400)
    data = ("data=text", f"data.path={folder / 'corpus.txt'}", f"data.cache_dir={folder / 'cache'}")
    run(folder, *data, "seq=32", "max_steps=30", "optim.lr=0.01", *LLAMA)
    return last(folder)


def export(run_dir: Path, *words: str) -> dict[str, Any]:
    return xftrain.run(xftrain.compose(*words, config_name="export"), run_dir)


def test_transformers_continues_the_text_as_a_sample_does(tmp_path: Path, trained: Path) -> None:
    folder = tmp_path / "exported"
    result = export(tmp_path / "run", f"ckpt={trained}", f"path={folder}")
    assert (result["status"], result["steps"]) == ("completed", 0)
    assert result["metrics"]["export/tensors"] == len(read_folder(folder).weights) == 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.max_position_embeddings == 32
    prompt = tokenizer("the same é", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=64, do_sample=False)
    words = ("prompt='the same é'", "num_tokens=64", "temperature=0")
    ours = sample(tmp_path / "sample", trained, *words)
    new = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(new) > 30 and new in ours
    # the rows of the embedding are rounded up to 320, and no text has a token above 256
    assert model.config.vocab_size == 320 and model.config.eos_token_id == 256
    assert model.generation_config.suppress_tokens == list(range(257, 320))


def test_the_folder_is_used_as_the_checkpoint_is(tmp_path: Path, trained: Path) -> None:
    folder = tmp_path / "exported"
    export(tmp_path / "run", f"ckpt={trained}", f"path={folder}")
    words = ("prompt='the same é'", "num_tokens=48", "temperature=0")
    ours, theirs = (
        sample(tmp_path / name, ckpt, *words).partition("\n")[2]
        for name, ckpt in (("a", trained), ("b", folder))
    )
    assert len(ours) > 40 and theirs == ours
    data = ("data=text", f"data.path={trained.parents[1] / 'corpus.txt'}")
    start = run(tmp_path / "new", *data, "seq=32", "max_steps=1", f"init_from={folder}", *LLAMA)
    assert start["metrics"]["val/loss"] < 1.0
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ConfigError, match="ckpt=.* has no file tokenizer.json: give a complete fol"
    ):
        sample(tmp_path / "c", folder, *words)
    (folder / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="tokenizer.json is a link that leads out of the folder"):
        sample(tmp_path / "d", folder, *words)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no tokenizer that can be read: data.tokenizer must"):
        sample(tmp_path / "e", folder, *words)


def test_the_weights_of_the_folder_are_those_of_the_checkpoint(
    tmp_path: Path, trained: Path
) -> None:
    export(tmp_path / "run", f"ckpt={trained}", f"path={tmp_path / 'exported'}")
    saved = read_checkpoint(trained)["state_dict"]
    folder = read_folder(tmp_path / "exported")
    model, _ = xftrain_model(trained)
    facts = describe(model)
    back = family_for(facts).key_map(facts).to_ours(dict(folder.weights))
    assert back.keys() == {name.removeprefix("model.") for name in saved}
    assert all(torch.equal(back[name.removeprefix("model.")], saved[name]) for name in saved)


def xftrain_model(ckpt: Path) -> tuple[Any, Any]:
    from xftrain.commands.trained_model import load_trained_model
    from xftrain.config.command_configs import ExportConfig
    from xftrain.config.compose import validate_as

    cfg = xftrain.compose(f"ckpt={ckpt}", config_name="export")
    trained = load_trained_model(cfg, validate_as(ExportConfig, cfg))
    return trained.model, trained.config


def test_weights_of_16_bits(tmp_path: Path, trained: Path) -> None:
    export(tmp_path / "run", f"ckpt={trained}", f"path={tmp_path / 'half'}", "dtype=bfloat16")
    content = json.loads((tmp_path / "half" / "config.json").read_text())
    weights = read_folder(tmp_path / "half").weights
    assert content["torch_dtype"] == "bfloat16"
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path: Path, trained: Path) -> None:
    run(tmp_path / "other", "max_steps=1")  # learned positions with a gated feed-forward
    other, taken = last(tmp_path / "other"), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("kept")
    for words, said in (
        ((f"ckpt={other}", f"path={tmp_path / 'new'}"), "format=hf cannot express this model"),
        ((f"ckpt={trained}",), "path is missing"),
        ((f"path={tmp_path / 'new'}",), "ckpt is missing"),
        ((f"ckpt={trained}", f"path={taken}"), "must be a new or empty folder"),
        ((f"ckpt={trained}", "path='a\0b'"), "path must be the path of a folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            export(tmp_path / "run", *words)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
