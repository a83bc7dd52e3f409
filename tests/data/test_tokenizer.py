import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.data.tokens.tokenizer import Bpe, Bytes, byte_of_character

WORDS = "the cat sat on the mat and the dog sat on the log, naïve façade 漢字 \U0001f600\n"


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5))
def test_tokenizers_lose_nothing(texts):
    bpe = Bpe.train([text.encode() for text in [WORDS, *texts]], vocab_size=280)
    for tokenizer in (Bytes(), bpe, Bpe.from_json(bpe.to_json())):
        encoded = list(tokenizer.encode_pieces(text.encode() for text in texts))
        spelled = [b"".join(tokenizer.spellings[t] for t in tokens) for tokens in encoded]
        assert spelled == [text.encode() for text in texts]


def test_no_text_spells_the_separator():
    bpe = Bpe.train([b"<|end|> <|end|> <|end|>"] * 9, vocab_size=300)
    (tokens,) = bpe.encode_pieces([b"<|end|> and <|end|>"])
    assert bpe.separator not in tokens and bpe.decode(tokens.tolist()) == "<|end|> and <|end|>"


def test_bpe_training_is_repeatable():
    train = [(WORDS * 5).encode()]
    assert Bpe.train(train, 400).to_json() == Bpe.train(train, 400).to_json()
    assert Bpe.train(train, 290).vocab_size == 290


@pytest.mark.parametrize("unit", ["A", " ", "\n", "\t", "!\x1c", "\u2028", "漢", "\r\x85\x0b"])
def test_words_without_end_train_in_pieces(unit):
    # 4 MiB of DNA, one word a piece, trained for more than a minute before long words were cut, and
    # 2 MB of blanks and line breaks for 38 s while only words of other characters were
    bpe = Bpe.train([unit.encode() * 4096], vocab_size=300)
    assert 128 < max(map(len, bpe.spellings)) <= 256
    assert json.loads(bpe.to_json())["pre_tokenizer"]["type"] == "ByteLevel"


def test_a_vocabulary_that_is_no_byte_level_bpe_is_refused():
    with pytest.raises(ValueError, match="not a byte-level vocabulary"):
        Bpe.from_json('{"version": "1.0", "model": 3}')


@pytest.mark.parametrize("merge", [("ab", "c"), ("a", "bc"), ("a", "b"), ("abc", "")])
def test_each_part_of_a_merge_and_what_it_makes_has_a_token(merge):
    letters = sorted(byte_of_character())
    assert Bpe([*letters, "bb", "abb"], [("b", "b"), ("a", "bb")]).encode("xabb")[1:] == [257]
    with pytest.raises(ValueError, match="a merge has no token"):
        Bpe([*letters, "abc"], [merge])


def test_merges_may_be_written_as_older_files_have_them():
    bpe = Bpe.train([(WORDS * 5).encode()], 290)
    content = json.loads(bpe.to_json())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    assert Bpe.from_json(json.dumps(content)).digest() == bpe.digest()


def test_a_token_has_at_most_4096_bytes():
    letters = sorted(byte_of_character())
    assert Bpe([*letters, "a" * 4096], []).spellings[256] == b"a" * 4096
    for text in ("a" * 4097, ""):
        with pytest.raises(ValueError, match="a token is empty or longer than 4096 bytes"):
            Bpe([*letters, text], [])
