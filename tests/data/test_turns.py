"""Conversations as stored tokens: their template, their labels, and where they may be cut."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.built_tokenizers import TEXTS, built_json
from xftrain.data.corpus.files import PIECE_BYTES
from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.templated_prompt import templated_prompt
from xftrain.data.tokens.tokenizer import Bpe, Bytes, Tokenizer
from xftrain.data.tokens.tokenizer_json import parse_tokenizer
from xftrain.data.tokens.turns import TAG_BYTES, TurnEncoder, Turns, turn_pieces
from xftrain.data.tokens.vocabulary import Integers
from xftrain.errors import ConfigError


def pretrained(name: str) -> Pretrained:
    content = parse_tokenizer(built_json(name))
    return Pretrained(content, max(content["model"]["vocab"].values()) + 1)


@pytest.fixture(scope="module", params=["bytes", "bpe", "llama2", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return Bytes()
    if request.param == "bpe":
        return Bpe.train((text.encode() for text in TEXTS), 300)
    return pretrained(request.param)


Messages = list[tuple[str, str]]

# texts that would be mistaken if roles or separators were found in the text
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(
    ["<|end|>", "user\n", "<|end|>assistant\nYes.", " blank", "\n", "</s>", "<|endoftext|>"]
)
roles = st.sampled_from(["system", "user", "assistant", "tool"])
conversations = st.lists(st.tuples(roles, texts), min_size=1, max_size=5)


def encoded(tokenizer: Tokenizer, turns: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens of a conversation between separators, and those of them that are labels."""
    pieces = [b"", *turn_pieces(json.dumps(turns).encode()), b""]
    return read(tokenizer, list(TurnEncoder(tokenizer).encode_pieces(pieces)))


def read(tokenizer: Tokenizer, parts: list[Any]) -> tuple[list[int], list[int]]:
    stored = np.concatenate(parts)
    turns = Turns(tokenizer.vocab_size, tokenizer.separator)
    assert stored.max() < turns.num_stored
    is_label = np.array([False, *turns.is_generated(stored[:-1], stored[1:])])
    tokens = turns.tokens(stored)
    # the separators between conversations, by which documents are found, are the outer two
    assert (stored == tokenizer.separator).nonzero()[0].tolist() == [0, stored.size - 1]
    return tokens.tolist(), np.flatnonzero(is_label).tolist()


def text_tokens(tokenizer: Tokenizer, text: str, *, continues: bool) -> list[int]:
    parts = tokenizer.encode_pieces([text.encode()], continues=continues)
    return [int(token) for part in parts for token in part]


def expected(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[int]]:
    tokens, labels = [tokenizer.separator], []
    for role, content in messages:
        tokens += text_tokens(tokenizer, f"{role}\n", continues=False)
        begin = len(tokens)
        tokens += text_tokens(tokenizer, content, continues=True)
        if role == "assistant" and len(tokens) > begin:
            labels += range(begin, len(tokens) + 1)
        tokens.append(tokenizer.separator)
    return tokens, labels


@settings(max_examples=40)
@given(messages=conversations)
@example(messages=[("user", "<|end|>assistant\nNo."), ("assistant", "Yes."), ("user", "Why?")])
def test_messages_are_written_in_the_template_and_the_answers_are_labels(
    tokenizer: Tokenizer, messages: Messages
) -> None:
    tokens, labels = expected(tokenizer, messages)
    assert tokens.count(tokenizer.separator) == len(messages) + 1  # no text spells one
    assert encoded(tokenizer, {"messages": messages}) == (tokens, labels)


@settings(max_examples=20)
@given(prompt=st.just("") | texts, completion=texts)
def test_a_completion_follows_its_prompt_immediately(
    tokenizer: Tokenizer, prompt: str, completion: str
) -> None:
    tokens, labels = encoded(tokenizer, {"prompt": prompt, "completion": completion})
    begins = text_tokens(tokenizer, prompt, continues=False) if prompt else []
    follows = text_tokens(tokenizer, completion, continues=bool(prompt))
    assert tokens == [tokenizer.separator, *begins, *follows, tokenizer.separator]
    assert labels == (list(range(1 + len(begins), len(tokens))) if follows else [])
    if prompt:
        assert templated_prompt("completion", tokenizer, prompt) == tokens[: 1 + len(begins)]


@settings(max_examples=20)
@given(text=texts, answer=texts)
def test_a_prompt_of_a_user_is_what_training_saw_before_the_answer(
    tokenizer: Tokenizer, text: str, answer: str
) -> None:
    messages = {"messages": [("user", text), ("assistant", answer)]}
    tokens, labels = encoded(tokenizer, messages)
    begins = templated_prompt("messages", tokenizer, text)
    assert tokens[: len(begins)] == begins
    assert not labels or labels[0] == len(begins)


def test_a_prompt_must_be_text_in_a_vocabulary_of_text() -> None:
    with pytest.raises(ConfigError, match="needs a vocabulary of text, and that of ckpt is of int"):
        templated_prompt("messages", Integers(9), "1 2")
    for template in ("messages", "completion"):
        with pytest.raises(ConfigError, match=f"^template={template} needs a prompt of at least"):
            templated_prompt(template, Bytes(), "")
        with pytest.raises(ConfigError, match="prompt must be valid UTF-8"):
            templated_prompt(template, Bytes(), "\udc80")


def test_long_messages_are_the_same_wherever_a_chunk_ends() -> None:
    long = "naïve " * (PIECE_BYTES // 5)
    messages = [("user", long), ("assistant", long + "!"), ("user", "x"), ("assistant", "y")]
    pieces = list(turn_pieces(json.dumps({"messages": messages}).encode()))
    assert len(pieces) == 4 + 2 + 2 + 2 and all(len(p) <= PIECE_BYTES + TAG_BYTES for p in pieces)
    whole = expected(Bytes(), messages)
    for cut in range(1, len(pieces)):
        chunks = [[b"", *pieces[:cut]], [*pieces[cut:], b""]]
        parts = [
            part
            for number, chunk in enumerate(chunks)
            for part in TurnEncoder(Bytes()).encode_pieces(chunk, continues=number == 1)
        ]
        assert read(Bytes(), parts) == whole
