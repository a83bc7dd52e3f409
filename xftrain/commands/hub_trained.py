"""Loads the model and the vocabulary of a Hugging Face folder, for commands that use a model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from xftrain.commands import builder
from xftrain.commands.hub_model import read_hub_model
from xftrain.commands.initial_weights import copy_weights
from xftrain.config.run_config import ModelConfig
from xftrain.data.tokens.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_CONFIGS,
    read_pretrained,
)
from xftrain.errors import ConfigError
from xftrain.hugging_face.folder import checked_file
from xftrain.interfaces import Vocabulary
from xftrain.model.gpt import GPT
from xftrain.utils.printable import one_line


def load_hub_folder(path: Path, key: str) -> tuple[GPT, ModelConfig, Vocabulary]:
    """The model with its weights in float32, its configuration, and its vocabulary.

    Args:
        path: the folder, which is untrusted.
        key: the override that names it, for messages.

    Raises:
        ConfigError: a file is missing or damaged, or the model or the tokenizer is not one of those
            that are known.
    """
    named = f"{key}={one_line(str(path))}"
    hub = read_hub_model(path, key)
    vocabulary = _vocabulary(path, named)
    if vocabulary.vocab_size > hub.num_rows:
        raise ConfigError(
            f"{named} has a tokenizer of {vocabulary.vocab_size} tokens, and a model of "
            f"{hub.num_rows}: give the folder that both were saved in."
        )
    hub.weights.refuse_others()
    with torch.device("cpu"):
        model = builder.assemble(hub.config, hub.num_rows)
    copy_weights(model, hub.weights, named)
    return model, hub.config, vocabulary


def _vocabulary(path: Path, named: str) -> Vocabulary:
    """The vocabulary of the tokenizer in a folder."""
    for name in (TOKENIZER, *[one for one in TOKENIZER_CONFIGS if os.path.lexists(path / one)]):
        checked_file(path, name, named)
    try:
        return read_pretrained(str(path))
    except ConfigError as error:
        raise ConfigError(f"{named} has no tokenizer that can be read: {error}") from error
