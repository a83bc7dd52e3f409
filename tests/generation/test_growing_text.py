"""The text of a continuation is that of all its tokens, though only the last ones are decoded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xftrain.data.tokens.vocabulary import Integers
from xftrain.generation.continuation import Continuation, Stops
from xftrain.generation.growing_text import GrowingText

# what is decoded together: single bytes, whole and broken characters, words with and without blanks
PIECES = [bytes([byte]) for byte in "é🙂\N{COMBINING ACUTE ACCENT}".encode()]
PIECES += [b"\xff", b"\xf0\x9f", b"\x99", b"a", b" the", b"n't", " naïve".encode(), b"\n", b" "]


def _bytes(tokens: list[int]) -> str:
    return b"".join(PIECES[token % len(PIECES)] for token in tokens).decode(errors="replace")


def _without_first_blank(tokens: list[int]) -> str:
    """As SentencePiece decodes: the blank before the first word is dropped."""
    return _bytes(tokens).removeprefix(" ")


def _cleaned(tokens: list[int]) -> str:
    """As WordPiece decodes: words, and no blank before punctuation."""
    words = [("do", "##n", "##'t", ".", "we", "!")[token % 6] for token in tokens]
    return " ".join(words).replace(" ##", "").replace(" .", ".").replace(" !", "!")


LOCAL = [_bytes, _without_first_blank, _cleaned, Integers(99).decode]


def _of_first_token(tokens: list[int]) -> str:
    """Not local: the case of all letters is that of the first token."""
    text = _bytes(tokens)
    return text.upper() if tokens and tokens[0] % 2 else text


def _reversed(tokens: list[int]) -> str:
    return _bytes(tokens)[::-1]


def _of_last_token(tokens: list[int]) -> str:
    text = "".join("ab"[token % 2] for token in tokens)
    return text.upper() if text.endswith("b") else text


@pytest.mark.parametrize("decode", [*LOCAL, _of_first_token, _of_last_token, _reversed])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), num_kinds=st.integers(1, len(PIECES)), size=st.integers(1, 40))
def test_it_is_the_text_of_all_tokens_at_each_step(
    decode: Callable[[list[int]], str], seed: int, num_kinds: int, size: int
) -> None:
    draw = random.Random(seed)
    kinds = draw.sample(range(len(PIECES)), num_kinds)
    growing, tokens, before = GrowingText(decode), list[int](), ""
    while len(tokens) < 150:
        tokens += draw.choices(kinds, k=size)
        text = growing.update(tokens)
        assert text == decode(tokens)
        assert text[: growing.num_kept] == before[: growing.num_kept]
        before = text
    assert growing.finish(tokens) == decode(tokens)


@pytest.mark.parametrize("decode", LOCAL)
@pytest.mark.parametrize("stops", [(), ("\N{SNOWMAN}",)])
def test_what_is_decoded_grows_with_the_number_of_tokens(decode, stops) -> None:
    decoded = 0

    def counted(tokens: list[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return decode(tokens)

    one = Continuation(Stops(None, stops, counted))
    draw = random.Random(0)
    for step in range(2000):
        one.add([draw.randrange(len(PIECES))], is_last=step == 1999)
    assert one.text == decode(one.tokens) and len(one.tokens) == 2000
    assert decoded < 100 * 2000  # all tokens in each step would be 1000 for each


def test_a_decoder_that_is_not_local_ends_with_the_text_of_all_tokens() -> None:
    # the overlap has no letters, so nothing shows that a late token changes the first ones
    def decode(tokens: list[int]) -> str:
        text = "".join("x-Y"[token] for token in tokens)
        return text.lower() if text.endswith("Y") else text.upper()

    tokens = [0] * 5 + [1] * 100 + [2]
    one = Continuation(Stops(None, (), decode))
    for at, token in enumerate(tokens):
        one.add([token], is_last=at == len(tokens) - 1)
    assert (one.text, one.reason) == (decode(tokens), "length")
    stopped = Continuation(Stops(None, ("x",), decode))
    for at, token in enumerate(tokens):
        stopped.add([token], is_last=at == len(tokens) - 1)
    assert (stopped.text, stopped.reason) == ("", "string")


def test_after_a_correction_the_text_continues_from_it() -> None:
    def decode(tokens: list[int]) -> str:  # by the number of tokens, which no overlap shows
        text = "".join("-Y"[token] for token in tokens)
        return text.lower() if len(tokens) > 90 else text

    growing, tokens = GrowingText(decode), [0] * 100
    for size in range(1, 101):
        growing.update(tokens[:size])
    tokens.append(1)
    assert growing.update(tokens) == "-" * 100 + "Y"
    assert growing.finish(tokens) == "-" * 100 + "y"
    tokens.append(0)
    assert growing.update(tokens) == "-" * 100 + "y-"


def test_a_stop_string_may_lie_over_the_border_of_what_is_final() -> None:
    stop = "stop" * 10
    for begin in range(40, 80, 5):
        one = Continuation(Stops(None, (stop,), lambda tokens: bytes(tokens).decode()))
        for byte in ("." * begin + stop + "." * 9).encode():
            one.add([byte], is_last=False)
        assert (one.text, one.reason, len(one.tokens)) == ("." * begin, "string", begin + 40)
