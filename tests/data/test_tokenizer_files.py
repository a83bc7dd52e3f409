"""data.tokenizer names a file or a folder, and every wrong one is one sentence."""

import json
import os

import pytest
import tokenizers

from tests.data.built_tokenizers import built_json
from xftrain.data.text import Text
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.choice import choose_tokenizer
from xftrain.data.tokens.tokenizer_files import read_pretrained
from xftrain.data.tokens.vocabulary import TOKENIZER_FILE, describe, rebuild, tokenizer_json
from xftrain.errors import ConfigError


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"the quick </s> fox {number} <|endoftext|>\n" * 9)
    return folder


@pytest.fixture
def model(tmp_path):
    """Makes the folder of a model with this tokenizer."""

    def make(name, **files):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(built_json(name))
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder

    return make


def read(path, vocab_size=None):
    return read_pretrained(str(path), vocab_size)


def test_a_file_and_its_folder_are_the_same(model):
    folder = model("gpt2")
    assert read(folder).digest() == read(folder / "tokenizer.json").digest()


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, "<|end_of_text|>"),
        ({"tokenizer_config": {"eos_token": "<|eot_id|>"}}, "<|eot_id|>"),
        ({"tokenizer_config": {"eos_token": {"content": "<|eot_id|>"}}}, "<|eot_id|>"),
        ({"special_tokens_map": {"eos_token": "<|eot_id|>"}}, "<|eot_id|>"),
        ({"tokenizer_config": {"eos_token": None}}, "<|end_of_text|>"),
        ({"tokenizer_config": {"eos_token": "not there"}}, "<|end_of_text|>"),
        ({"tokenizer_config": ["eos_token"]}, "<|end_of_text|>"),
    ],
)
def test_the_separator_is_the_eos_token(model, files, expected):
    assert read(model("llama3", **files)).separator_name == expected


def test_an_eos_that_is_no_special_token_separates_all_the_same(model):
    folder = model("gpt2", tokenizer_config={"eos_token": "Ġfox"})
    tokenizer = read(folder)
    text = "the quick brownfox fox"
    assert tokenizer.separator_name == "Ġfox" and tokenizer.separator not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_without_an_eos_there_is_one_more_token(model):
    folder = model("gpt2")
    content = json.loads(built_json("gpt2").replace("<|endoftext|>", "<other>"))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = read(folder)
    assert tokenizer.separator == tokenizer.vocab_size - 1 == 313


def test_the_links_of_a_hugging_face_cache_are_followed(model, tmp_path):
    folder = model("gpt2")
    (folder / "tokenizer.json").rename(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to("../blob")
    assert read(folder).vocab_size == 313


def test_a_relative_path_out_of_the_working_folder_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(model("gpt2"))
    os.rename("tokenizer.json", tmp_path / "private.json")
    os.symlink(tmp_path / "private.json", "tokenizer.json")
    with pytest.raises(ConfigError, match=r"data\.tokenizer=tokenizer\.json leads out of"):
        read("tokenizer.json")


def damage(content):
    return lambda folder: (folder / "tokenizer.json").write_bytes(content)


def changed(**parts):
    return lambda folder: (folder / "tokenizer.json").write_text(
        json.dumps(json.loads(built_json("gpt2")) | parts)
    )


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # `tokenizers` panics
NO_REGEX = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
WRONG = {
    "missing": (lambda folder: os.rename(folder, f"{folder}2"), "does not exist; nothing is down"),
    "no tokenizer": (lambda folder: os.remove(folder / "tokenizer.json"), "has none: transformers"),
    "empty": (damage(b""), "cannot be read as one"),
    "no JSON": (damage(b"\x80\x04cos\nsystem\n"), "cannot be read as one"),
    "a list": (damage(b"[]"), "no model with a vocabulary"),
    "a configuration": (damage(b'{"model_type": "llama"}'), "no model with a vocabulary"),
    "nested": (damage(b'{"a":' * 100_000), "nested too deeply|more values"),
    "too many values": (damage(b"[" + b"1," * 8_000_001), "more values than"),
    "another model": (changed(model={"type": "WordLevel", "vocab": {}}), "WordLevel"),
    "no ids": (changed(model={"type": "BPE", "vocab": {"a": 1.5}, "merges": []}), "token id"),
    "far ids": (changed(model={"type": "BPE", "vocab": {"a": 2**30}, "merges": []}), "token id"),
    "a list of ids": (changed(model={"type": "BPE", "vocab": {"a": [1]}, "merges": []}), "unhash"),
    "no pattern": (changed(pre_tokenizer=NO_REGEX), "parenthesis"),
    "a panic": (changed(normalizer=CHARSMAP), "precompiled_charsmap"),
    "other added ids": (changed(added_tokens=[{"id": 0, "content": "x"}]), "id of another"),
    "a damaged neighbor": (
        lambda folder: (folder / "tokenizer_config.json").write_text("{"),
        r"tokenizer_config\.json beside it is damaged",
    ),
    "a FIFO": (
        lambda folder: (
            os.remove(folder / "tokenizer.json"),
            os.mkfifo(folder / "tokenizer.json"),
        ),
        "not a plain file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_sentence(model, case, capfd):
    folder = model("gpt2")
    change, expected = WRONG[case]
    change(folder)
    with pytest.raises(ConfigError, match=expected) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data.tokenizer must be")


def test_a_size_below_the_ids_is_refused(model):
    with pytest.raises(ConfigError, match=r"data\.vocab_size must be at least 313 .* got 300"):
        read(model("gpt2"), 300)
    assert read(model("gpt2"), 320).vocab_size == 320


@pytest.mark.parametrize("name", ["gpt2", "llama2", "wordpiece"])
def test_a_run_trains_on_it_and_packs_documents(model, corpus, tmp_path, name):
    folder = model(name)
    options = {"tokenizer": str(folder), "packing": True, "cache_dir": str(tmp_path / "cache")}
    data = Text(16, 2, 0, 1, path=str(corpus), vocab_size=500, **options)
    assert data.vocab_size == 500
    batch = data.batch("train", 0)
    assert data.num_label_bytes(batch.labels_BM) > 32 and data.baseline()
    separators = data._cache.streams["train"].tokens == data.vocabulary.separator
    boundaries = data._cache.streams["train"].boundaries
    assert separators.nonzero()[0].tolist() == boundaries.tolist()  # no text has one


def test_the_content_of_the_tokenizer_is_part_of_the_token_files(model, corpus, tmp_path):
    folder, cache = model("gpt2"), str(tmp_path / "cache")
    first = prepare(str(corpus), tokenizer=str(folder), cache_dir=cache)
    moved = folder.rename(tmp_path / "moved")
    assert prepare(str(corpus), tokenizer=str(moved), cache_dir=cache).folder == first.folder
    content = json.loads(built_json("gpt2"))
    content["model"]["merges"].pop()
    (moved / "tokenizer.json").write_text(json.dumps(content))
    other = prepare(str(corpus), tokenizer=str(moved), cache_dir=cache)
    assert other.folder != first.folder and other.digest != first.digest
    assert other.tokenizer.vocab_size == first.tokenizer.vocab_size
    assert describe(other.tokenizer) != describe(first.tokenizer)


def test_bits_per_byte_that_are_near_are_announced(model, caplog):
    caplog.set_level("INFO")
    choose_tokenizer(str(model("gpt2")))
    assert "separated by token 0 (<|endoftext|>)" in caplog.text
    assert "approximate" not in caplog.text
    choose_tokenizer(str(model("qwen")))
    assert "changes some text, for example" in caplog.text and "approximate" in caplog.text


@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen", "unigram", "wordpiece"])
def test_it_comes_back_from_a_checkpoint(model, tmp_path, name):
    tokenizer = read(model(name), 500)
    (tmp_path / TOKENIZER_FILE).write_text(tokenizer_json(tokenizer))
    description = json.loads(json.dumps(describe(tokenizer)))
    again = rebuild(description, tmp_path)
    assert again.encode("the </s> fox") == tokenizer.encode("the </s> fox")
    assert describe(again) == description
    with pytest.raises(ConfigError, match="not the vocabulary that ckpt was trained with"):
        rebuild({**description, "separator": 3}, tmp_path)
    for damaged in (None, -1, 10**12, "2", True):
        with pytest.raises(ConfigError, match="damaged|cannot be read"):
            rebuild({**description, "separator": damaged}, tmp_path)


def test_the_saved_file_is_the_file_of_the_user(model):
    tokenizer = read(model("llama2"))
    library = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer))
    assert library.to_str() == tokenizers.Tokenizer.from_str(built_json("llama2")).to_str()
