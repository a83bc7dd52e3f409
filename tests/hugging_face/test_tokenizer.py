"""An exported tokenizer encodes and decodes as the vocabulary of the model does."""

from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.built_tokenizers import ALL, LOSSLESS, built_json
from tests.data.test_pretrained import BLANK_FIRST, made, spelled
from xftrain.data.tokens.tokenizer import Bpe, Bytes
from xftrain.data.tokens.vocabulary import Integers
from xftrain.hugging_face.tokenizer import end_of_text, tokenizer_files

TEXT = ["the quick brown fox jumps over the lazy dog é 漢字 " * 20, "<|end|> <|end|> <|end|>" * 9]
OWN = {"bytes": Bytes(), "bpe": Bpe.train([text.encode() for text in TEXT], 320)}
any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from([*TEXT, "<|end|>"])
    )
).map("".join)


def loaded(folder: Path, vocabulary):
    for name, text in tokenizer_files(vocabulary).items():
        (folder / name).write_text(text, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    vocabularies = OWN | {name: made(name) for name in ALL}
    return {
        name: (one, loaded(tmp_path_factory.mktemp("tokenizer"), one))
        for name, one in vocabularies.items()
    }


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=1000)
@given(text=any_text)
def test_text_is_encoded_and_decoded_alike(theirs, name, text):
    ours, other = theirs[name]
    tokens = other.encode(text)
    assert tokens == (ours.encode(text) if text else [])
    assert other.decode(tokens) == ours.decode(tokens) == text


@pytest.mark.parametrize("name", OWN)
@given(data=st.data())
def test_any_tokens_are_decoded_alike(theirs, name, data):
    ours, other = theirs[name]
    tokens = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert other.decode(tokens) == ours.decode(tokens)


@pytest.mark.parametrize("name", ALL)
@given(parts=spelled)
def test_text_is_encoded_as_a_tokenizer_from_a_file_does(theirs, name, parts):
    (ours, other), text = theirs[name], "".join(parts)
    tokens = ours.encode(text) if text else []
    assert other.encode(text) == (tokens if tokens != [ours.separator] else [])
    if name in LOSSLESS and (name not in BLANK_FIRST or not text.startswith(" ")):
        assert other.decode(tokens).removeprefix(" ") == ours.decode(tokens).removeprefix(" ")


@pytest.mark.parametrize("name", [*OWN, *ALL])
def test_the_token_between_documents_is_the_end_of_a_text(theirs, name):
    ours, other = theirs[name]
    assert other.eos_token_id == other.bos_token_id == ours.separator == end_of_text(ours)
    assert other.decode([ours.separator], skip_special_tokens=True) == ""
    assert len(other) <= ours.vocab_size


def test_numbers_are_words(tmp_path):
    ours, other = Integers(64), loaded(tmp_path, Integers(64))
    assert other.encode(" 1 02\n63 00") == ours.encode(" 1 02\n63 00") == [1, 2, 63, 0]
    assert other.decode([5, 0]) == ours.decode([5, 0]) == "5 0"
    assert built_json and other.eos_token is None
