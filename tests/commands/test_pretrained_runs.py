"""A checkpoint with a tokenizer from a file is resumed and sampled with that tokenizer alone."""

import json

import pytest

import xftrain
from tests.data.built_tokenizers import built_json
from tests.train.runs import SMALL, run
from xftrain.config.compose import compose
from xftrain.errors import ConfigError


def test_a_checkpoint_keeps_its_tokenizer(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(9):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"the quick </s> fox {number}\n" * 30)
    file = tmp_path / "tokenizer.json"
    file.write_text(built_json("llama2"))
    words = [*SMALL, "data=text", f"data.path={tmp_path / 'corpus'}", "data.packing=true"]
    words += [f"data.cache_dir={tmp_path / 'cache'}", "data.vocab_size=384"]
    run(tmp_path / "run", *words, f"data.tokenizer={file}", "max_steps=1")
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"

    moved = file.rename(tmp_path / "moved.json")
    again = run(tmp_path / "again", *words, f"data.tokenizer={moved}", "max_steps=2", ckpt)
    assert again["steps"] == 2  # the path may differ, as the content is the same

    content = json.loads(moved.read_text())
    content["model"]["merges"].pop()
    moved.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="another vocabulary, pretrained of 384 tokens"):
        run(tmp_path / "other", *words, f"data.tokenizer={moved}", "max_steps=2", ckpt)

    asked = compose(ckpt, "prompt='the </s> fox'", "num_tokens=4", config_name="sample")
    xftrain.run(asked, tmp_path / "sample")
    assert "prompt:\nthe </s> fox\n" in (tmp_path / "sample" / "sample.txt").read_text()
    (tmp_path / "run" / "checkpoints" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not the vocabulary that ckpt"):
        xftrain.run(asked, tmp_path / "sample")
