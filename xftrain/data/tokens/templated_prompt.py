"""Prompts written as the conversations are that a model was fine-tuned on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from xftrain.data.corpus.selection import ASSISTANT
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.data.tokens.turns import TurnEncoder, Turns, turn_pieces
from xftrain.errors import ConfigError

if TYPE_CHECKING:
    from xftrain.config.command_configs import Template
    from xftrain.interfaces import Vocabulary


def templated_prompt(template: Template, vocabulary: Vocabulary, text: str) -> list[int]:
    """The tokens of a conversation up to where the model is to begin its answer.

    Args:
        template: whether the text is the first message of a user, or a prompt without roles.
        vocabulary: the vocabulary of the model.
        text: the message or the prompt.

    Raises:
        ConfigError: the vocabulary is not of text, or the text is empty or has bytes from the shell
            that are not UTF-8.
    """
    if not isinstance(vocabulary, Tokenizer):
        raise ConfigError(
            f"template={template} needs a vocabulary of text, and that of ckpt is of "
            f"{vocabulary.kind}: leave template null."
        )
    if not text:
        raise ConfigError(f"template={template} needs a prompt of at least one character.")
    tokens = vocabulary.encode(text)  # raises if it is not UTF-8
    if template == "completion":
        return [vocabulary.separator, *tokens]
    pieces = turn_pieces(json.dumps({"messages": [["user", text], [ASSISTANT, ""]]}).encode())
    turns = Turns(vocabulary.vocab_size, vocabulary.separator)
    parts = TurnEncoder(vocabulary).encode_pieces([b"", *pieces])
    return [int(token) for part in parts for token in turns.tokens(part)]
