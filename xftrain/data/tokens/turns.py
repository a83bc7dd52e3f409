r"""Conversations as pieces of text, as stored tokens, and as tokens with labels.

    <separator>user\nHello<separator>assistant\nGood day.<separator>     messages
    <separator>the prompt, immediately followed by its completion<separator>

A role with its line break, and each content, prompt and completion, is encoded by itself, so that
the boundary between what is given and what the model is to generate lies between two tokens. No
text can spell the separator, so that no message can end another one or change its role.

In the token files, a token that the model is to generate is stored as its id plus V. A separator
within a conversation is stored as its id plus V where the model is to generate it, and as 2 V where
it ends a message that is given; all other separators are those between conversations. So a
separator that follows a generated token is generated too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from xftrain.data.corpus.files import text_pieces
from xftrain.data.corpus.selection import ASSISTANT
from xftrain.data.tokens.tokenizer import Tokenizer

TAG_BYTES = 1  # in front of the text of each piece: a sum of the following flags
_GENERATED = 1  # by the model, so that its tokens are labels
_BEGINS = 2  # right after a separator
_CONTINUES = 4  # the text of the piece before
_ENDS = 8  # a message that others follow

Ints = npt.NDArray[np.int64]


def turn_pieces(conversation: bytes) -> Iterator[bytes]:
    """The tagged pieces of a conversation, from the JSON that `Conversations` writes."""
    turns = json.loads(conversation)
    if "prompt" in turns:
        yield from _tagged(turns["prompt"], _BEGINS)
        yield from _tagged(turns["completion"], _GENERATED | (0 if turns["prompt"] else _BEGINS))
        return
    messages = turns["messages"]
    for number, (role, content) in enumerate(messages):
        ends = _ENDS if number + 1 < len(messages) else 0
        yield from _tagged(_header(role), _BEGINS)
        yield from _tagged(content, (_GENERATED if role == ASSISTANT else 0) | ends)


def text_of_piece(piece: bytes) -> bytes:
    """The text of a tagged piece."""
    return piece[TAG_BYTES:]


class TurnEncoder(Tokenizer):
    """Encodes tagged pieces into the tokens that are stored.

    Args:
        tokenizer: the vocabulary.
    """

    kind = "turns"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.spellings = tokenizer.spellings

    @property
    def vocab_size(self) -> int:
        """The number of different tokens that are stored."""
        return Turns.num_stored_of(self._tokenizer.vocab_size)

    @property
    def separator(self) -> int:
        """The separator between conversations."""
        return self._tokenizer.separator

    def encode_pieces(
        self, pieces: Iterable[bytes], *, continues: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        """The stored tokens of tagged pieces; `continues` is known from their tags."""
        size, separator = self._tokenizer.vocab_size, self.separator
        for tag, texts in _joined(pieces):
            if not texts:
                yield np.array([separator], dtype=np.uint32)
                continue
            is_generated = bool(tag & _GENERATED)
            for tokens in self._tokenizer.encode_pieces(texts, continues=not tag & _BEGINS):
                yield tokens.astype(np.uint32) + np.uint32(size * is_generated)
            if tag & _ENDS:
                end = size + separator if is_generated else 2 * size
                yield np.array([end], dtype=np.uint32)

    def digest(self) -> str:
        return hashlib.sha256(f"turns {self._tokenizer.digest()}".encode()).hexdigest()


class Turns:
    """Reads stored tokens.

    Args:
        vocab_size: V.
        separator: the separator.
    """

    def __init__(self, vocab_size: int, separator: int) -> None:
        self._vocab_size, self._separator = vocab_size, separator
        self.num_stored = self.num_stored_of(vocab_size)

    @staticmethod
    def num_stored_of(vocab_size: int) -> int:
        """The number of different stored tokens of a vocabulary."""
        return 2 * vocab_size + 1

    def tokens(self, stored: npt.NDArray[Any]) -> Ints:
        """The tokens of stored tokens."""
        tokens: Ints = stored.astype(np.int64)
        is_end = tokens == 2 * self._vocab_size
        tokens %= self._vocab_size
        tokens[is_end] = self._separator
        return tokens

    def is_generated(
        self, stored: npt.NDArray[Any], following: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_]:
        """Whether the model is to generate each of the following tokens.

        Args:
            stored: stored tokens.
            following: the stored token that follows each of them.
        """
        # the last message has no separator but that between conversations
        is_last = (following == self._separator) & self._has_flag(stored)
        return self._has_flag(following) | is_last

    def _has_flag(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = stored >= self._vocab_size
        return found & (stored < 2 * self._vocab_size)


def _header(role: str) -> str:
    return f"{role}\n"


def _tagged(text: str, tag: int) -> Iterator[bytes]:
    """The pieces of a text, each with its own tag."""
    pieces = list(text_pieces(text.encode()))
    for number, piece in enumerate(pieces):
        own = tag & _GENERATED
        own |= _CONTINUES if number else tag & _BEGINS
        own |= tag & _ENDS if number + 1 == len(pieces) else 0
        yield bytes([own]) + piece


def _joined(pieces: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The pieces of each text with its tag; without pieces, a separator."""
    tag, texts = 0, list[bytes]()
    for piece in pieces:
        if texts and not (piece and piece[0] & _CONTINUES):
            yield tag, texts
            tag, texts = 0, []
        if not piece:
            yield 0, []
            continue
        tag |= piece[0]
        texts.append(text_of_piece(piece))
    if texts:
        yield tag, texts
