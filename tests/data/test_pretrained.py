"""A tokenizer from a file encodes text as its library does, and a special token stays text."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.data.built_tokenizers import ALL, LOSSLESS, built_json
from xftrain.data.tokens import pretrained
from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer_json import parse_tokenizer, token_ids
from xftrain.errors import ConfigError

EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")
SPECIAL = (*EOS, "<s>", "<unk>", "<0x0A>", "<0xFF>", "<|eot_id|>", "<tool_call>", "<eats blanks>")
BLANK_FIRST = {"byte_level_with_blank", "unigram"}  # a blank more or less at the beginning is lost

# No blank of sentencepiece, which is a blank for it in a text as well.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"))
spelled = st.lists(st.one_of(texts, st.sampled_from([*SPECIAL, "  ", "\n", "the", " quick"])))


def made(name, vocab_size=None):
    content = parse_tokenizer(built_json(name))
    ids = {text: token for token, text in token_ids(content).items()}
    separator = next(ids[eos] for eos in EOS if eos in ids)
    return Pretrained(content, separator, vocab_size)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: made(name) for name in ALL}


@pytest.mark.parametrize("name", LOSSLESS)
@given(parts=spelled)
def test_any_text_comes_back_and_has_no_separator(tokenizers, name, parts):
    tokenizer, text = tokenizers[name], "".join(parts)
    if name in BLANK_FIRST:
        text = text.removeprefix(" ")
        text = f"x{text}" if text.startswith(" ") else text
    if not text:
        return
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert not set(tokens) & tokenizer._plain.special_ids
    spelled_bytes = b"".join(tokenizer.spellings[token] for token in tokens)
    assert spelled_bytes == (b" " if tokenizer._has_prefix else b"") + text.encode()


@pytest.mark.parametrize("name", ALL)
@given(parts=spelled)
def test_no_text_gives_a_special_token(tokenizers, name, parts):
    tokenizer, text = tokenizers[name], "".join(parts)
    unknown = {"wordpiece": {0}}.get(name, set())
    found = set(tokenizer.encode(text)) & tokenizer._plain.special_ids if text else set()
    assert found <= unknown | ({tokenizer.separator} if text.isspace() else set())


@pytest.mark.parametrize("name", ALL)
@given(text=st.text(st.sampled_from("the quick brown fox\n.,Ü漢!")))
def test_ordinary_text_has_the_tokens_that_the_library_gives_it(tokenizers, name, text):
    library = Tokenizer.from_str(built_json(name))
    ids = library.encode(text, add_special_tokens=False).ids
    assert not text or tokenizers[name].encode(text) == (ids or [tokenizers[name].separator])


@pytest.mark.parametrize("name", ["gpt2", "llama2", "unigram"])
def test_documents_are_encoded_whole_however_they_are_cut_into_pieces(tokenizers, name):
    tokenizer, text = tokenizers[name], b"the quick brown fox jumps over <0x0A> </s>" * 9
    pieces = [b"", text[:7], text[7:201], text[201:], b"", b"a", b""]
    found = list(tokenizer.encode_pieces(pieces))
    expected = [[tokenizer.separator], tokenizer.encode(text.decode()), [tokenizer.separator]]
    joined = [token for part in found for token in part.tolist()]
    assert joined == [*sum(expected, []), *tokenizer.encode("a"), tokenizer.separator]
    assert all(part.size for part in found)
    if name == "gpt2":
        assert len(found) == 5


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("text", ["fox\n" * 99, "fox 漢字 " * 99, "漢" * 99])
def test_a_long_document_is_cut_and_loses_nothing(tokenizers, name, text, monkeypatch):
    monkeypatch.setattr(pretrained, "WHOLE_BYTES", 50)
    tokenizer = made(name)
    parts = list(tokenizer.encode_pieces([text.encode(), b""]))
    assert len(parts) > 5 and [p.tolist() for p in parts[-1:]] == [[tokenizer.separator]]
    assert tokenizer.decode(np.concatenate(parts[:-1]).tolist()) == text  # one blank at the most


@pytest.mark.parametrize("name", ALL)
def test_bits_per_byte_are_exact_for_lossless_tokenizers_alone(tokenizers, name):
    changed = tokenizers[name].changed_text()
    assert (changed is None) is (name in LOSSLESS)


def test_spellings_of_a_lossy_tokenizer_are_near(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    tokens = tokenizer.encode("The quick brown fox")
    assert b"".join(tokenizer.spellings[token] for token in tokens) == b" the quick brown fox"


def test_the_size_may_be_rounded_up(tokenizers):
    plain, rounded = tokenizers["llama3"], made("llama3", 512)
    assert rounded.vocab_size == 512 and plain.vocab_size == 315
    assert rounded.digest() == plain.digest() and rounded.encode("fox") == plain.encode("fox")
    assert rounded.decode([511]) == "\ufffd"
    with pytest.raises(ValueError, match="does not fit"):
        made("llama3", 314)


def test_without_an_eos_the_separator_is_one_more_token():
    content = parse_tokenizer(built_json("llama3"))
    tokenizer = Pretrained(content, 315)
    assert tokenizer.vocab_size == 316 and tokenizer.decode([315]) == "<|end|>"
    assert tokenizer.separator_name == "<|end|>"
    with pytest.raises(ValueError, match="does not fit"):
        Pretrained(content, 316)


def test_special_tokens_are_shown_by_their_names(tokenizers):
    tokenizer = tokenizers["llama2"]
    assert tokenizer.decode([1, *tokenizer.encode("fox"), 2]) == "<s> fox<|end|>"
    assert tokenizer.decode_rest(tokenizer.encode("fox")) == " fox"
    assert tokenizer.decode([*tokenizer.encode("fox"), 2, *tokenizer.encode("a")]) == "fox<|end|>a"


def test_the_digest_is_of_the_content_and_the_separator(tokenizers):
    content = parse_tokenizer(built_json("llama2"))
    other_form = parse_tokenizer(built_json("llama2"))
    other_form |= {"truncation": {"max_length": 3}, "post_processor": None}
    assert Pretrained(other_form, 2).digest() == tokenizers["llama2"].digest()
    assert Pretrained(content, 1).digest() != tokenizers["llama2"].digest()
    assert len({tokenizer.digest() for tokenizer in tokenizers.values()}) == len(tokenizers)


def test_a_worker_process_gets_the_same_tokenizer(tokenizers):
    for tokenizer in tokenizers.values():
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode("the </s> fox") == tokenizer.encode("the </s> fox")
        assert again.digest() == tokenizer.digest()


def test_a_text_that_cannot_be_encoded_is_one_sentence():
    content = parse_tokenizer(built_json("unigram"))
    content["model"] |= {"unk_id": None, "byte_fallback": False}
    with pytest.raises(ConfigError, match=r"data\.tokenizer cannot encode a text: .*unknown"):
        Pretrained(content, 2).encode("\u1234")
