"""A vocabulary is rebuilt from a checkpoint's description, or refused in one sentence."""

import json
import os

import pytest
import tokenizers

from xftrain.data.tokens.tokenizer import Bpe, Bytes
from xftrain.data.tokens.vocabulary import (
    TOKENIZER_FILE,
    Integers,
    describe,
    rebuild,
    tokenizer_json,
)
from xftrain.errors import ConfigError

TEXT = b"the cat sat on the mat and the dog sat on the log. " * 9


@pytest.fixture(scope="module")
def bpe():
    return Bpe.train([TEXT], 280)


@pytest.mark.parametrize("kind", ["integers", "bytes", "bpe"])
def test_a_vocabulary_comes_back_from_plain_values_and_its_file(tmp_path, bpe, kind):
    vocabulary = {"integers": Integers(64), "bytes": Bytes(), "bpe": bpe}[kind]
    content = tokenizer_json(vocabulary)
    assert (content is None) is (kind != "bpe")
    if content:
        (tmp_path / TOKENIZER_FILE).write_text(content)
    description = json.loads(json.dumps(describe(vocabulary)))
    again = rebuild(description, tmp_path)
    text = "3 4 5" if kind == "integers" else "the cat, naïve"
    assert again.encode(text) == vocabulary.encode(text)
    assert again.decode(again.encode(text)) == text
    assert describe(again) == description


def test_the_file_is_for_others_too(bpe):
    read = tokenizers.Tokenizer.from_str(bpe.to_json())
    ids = read.encode("the cat, naïve").ids
    assert ids == bpe.encode("the cat, naïve") and read.decode(ids) == "the cat, naïve"


def test_the_digest_is_of_the_content(bpe):
    indented = json.dumps(json.loads(bpe.to_json()), indent=3)
    assert Bpe.from_json(indented).digest() == bpe.digest()
    assert len({v.digest() for v in (bpe, Bpe.train([TEXT], 270), Bytes(), Integers(257))}) == 4


def test_a_prompt_that_is_no_utf8_is_refused(bpe):
    for vocabulary in (bpe, Bytes()):
        with pytest.raises(ConfigError, match="prompt must be valid UTF-8"):
            vocabulary.encode("a\udcff")


def with_part(**changes):
    return lambda content: content.update(changes)


def with_model(**changes):
    return lambda content: content["model"].update(changes)


def swap_ids(content):
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = len(vocab), vocab["a"]


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
PADDING = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_token": "a"}
HOSTILE = {
    "a normalizer": with_part(normalizer={"type": "Lowercase"}),
    "a regular expression": with_part(pre_tokenizer=REGEX),
    "no pre-tokenizer": with_part(pre_tokenizer=None),
    "padding": with_part(padding=PADDING),
    "truncation": with_part(truncation={"max_length": 0}),
    "a template": with_part(post_processor={"type": "TemplateProcessing"}),
    "added tokens": with_part(added_tokens=[{"id": 9, "content": "x"}]),
    "another model": with_model(type="WordLevel"),
    "dropout": with_model(dropout=0.9),
    "a prefix": with_model(continuing_subword_prefix="##"),
    "ids out of order": swap_ids,
    "ids that are no integers": with_model(vocab={"a": 0.0}),
    "an id that is true": lambda c: c["model"]["vocab"].update(a=True),
    "a byte without a token": with_model(vocab={"a": 0}, merges=[]),
    "a token that is no bytes": lambda c: c["model"]["vocab"].update({"漢": 279}),
    "an empty token": lambda c: c["model"]["vocab"].update({"": 279}),
    "a token of a megabyte": lambda c: c["model"]["vocab"].update({"a" * 2**20: 279}),
    "a merge of nothing": with_model(merges=[["a", "nowhere"]]),
    "a merge of three": with_model(merges=[["a", "b", "c"]]),
    "a merge of numbers": with_model(merges=[[1, 2]]),
    "no merges": with_model(merges=None),
    "no model": with_part(model=None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_vocabulary_is_one_sentence(tmp_path, bpe, case):
    content = json.loads(bpe.to_json())
    HOSTILE[case](content)
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(content))
    refused(tmp_path, describe(bpe), "cannot be read")


FILES = {
    "missing": lambda path: path.unlink(),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n"),
    "a list": lambda path: path.write_bytes(b"[]"),
    "nested deeply": lambda path: path.write_bytes(b'{"a":' * 100_000),
    "huge": lambda path: os.truncate(path, 1 << 40),
    "of another run": lambda path: path.write_text(Bpe.train([TEXT], 270).to_json()),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_the_runs_is_one_sentence(tmp_path, bpe, case):
    (tmp_path / TOKENIZER_FILE).write_text(bpe.to_json())
    FILES[case](tmp_path / TOKENIZER_FILE)
    refused(tmp_path, describe(bpe), "run")


@pytest.mark.parametrize(
    "description",
    [
        None,
        "bytes",
        {},
        {"kind": "bytes", "vocab_size": 257, "digest": "x"},
        {"kind": "bytes", "vocab_size": 10**9, "digest": Bytes().digest()},
        {"kind": "integers", "vocab_size": 2**70, "digest": "x"},
        {"kind": "integers", "vocab_size": "64", "digest": "x"},
        {"kind": "\x1b[2J" * 99, "vocab_size": 64, "digest": "x"},
        {"kind": ["bpe"], "vocab_size": 64, "digest": "x"},
    ],
)
def test_a_hostile_description_is_one_sentence(tmp_path, description):
    refused(tmp_path, description, "ckpt")


def refused(folder, description, said):
    with pytest.raises(ConfigError, match=said) as error:
        rebuild(description, folder)
    sentence = str(error.value)
    assert sentence.endswith(".") and sentence.isprintable() and len(sentence) < 700


def _of_brackets(num_bytes):
    return '{"model":{"vocab":{},"merges":[' + "[]," * (num_bytes // 3) + "[]]}}"


@pytest.mark.parametrize("vocab_size", [280, 2**30])
def test_a_file_of_many_small_values_is_refused_before_it_is_parsed(
    tmp_path, monkeypatch, vocab_size
):
    # 60 MB of brackets took 1.9 GB
    (tmp_path / TOKENIZER_FILE).write_text(_of_brackets(5000 if vocab_size == 280 else 15_000_000))
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it is parsed"))
    description = {"kind": "bpe", "vocab_size": vocab_size, "digest": "x"}
    with pytest.raises(ConfigError, match="has more values than the vocabulary") as refused:
        rebuild(description, tmp_path)
    assert str(refused.value).endswith(".")


def test_quotes_that_are_never_closed_are_soon_gone_through(tmp_path):
    for text in ('"' + '\\"' * 2_000_000, '"' * 2_000_001, "\\" * 2_000_001):
        (tmp_path / TOKENIZER_FILE).write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            rebuild({"kind": "bpe", "vocab_size": 280, "digest": "x"}, tmp_path)


@pytest.mark.parametrize("indent", [None, 3])
def test_a_vocabulary_with_brackets_and_quotes_in_its_tokens_has_no_more_values(
    tmp_path, monkeypatch, indent
):
    monkeypatch.setattr("xftrain.data.tokens.tokenizer._OTHER_PARTS", 50)
    code = b'[[[[{{"a", "b"}}]]]] \\\\ \\" ,,,, [[, {"x": [1, 2]}, ' * 99
    made = Bpe.train([code], 400)
    (tmp_path / TOKENIZER_FILE).write_text(
        json.dumps(json.loads(tokenizer_json(made)), indent=indent)
    )
    assert rebuild(describe(made), tmp_path).digest() == made.digest()
