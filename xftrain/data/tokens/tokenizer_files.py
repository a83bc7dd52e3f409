"""Reads the tokenizer that data.tokenizer names: a tokenizer.json, or a Hugging Face folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES
from xftrain.data.tokens.tokenizer_json import parse_tokenizer, token_ids
from xftrain.errors import ConfigError, first_line
from xftrain.utils.files import expand_home, read_plain, refuse_escaping_path
from xftrain.utils.printable import one_line, shortened

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
)  # either may name the EOS token
_CONFIG_BYTES = 4 << 20
# EOS tokens of GPT-2, Llama 1 and 2, Llama 3, Gemma and BERT, in the order in which they are looked
# for if no file beside the tokenizer names one.
_KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_HOW_TO_MAKE = (
    "transformers writes one with AutoTokenizer.from_pretrained(...).save_pretrained(folder), if "
    "the tokenizer is a fast one"
)


def read_pretrained(path: str, vocab_size: int | None = None) -> Pretrained:
    """The tokenizer of a file or folder.

    Args:
        path: a tokenizer.json, or a folder that holds one.
        vocab_size: V; None is the largest token id and one.

    Raises:
        ConfigError: there is no such file, or it is damaged, or is no tokenizer.
    """
    file = _file(path)
    try:
        content = parse_tokenizer(_read(file, MAX_FILE_BYTES))
        separator = _separator(file.parent, token_ids(content))
        tokenizer = Pretrained(content, separator)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or shortened(one_line(str(error)), 200)
        raise ConfigError(
            f"data.tokenizer must be a tokenizer.json of Hugging Face's tokenizers, and "
            f"{one_line(str(file))} cannot be read as one ({reason}): {_HOW_TO_MAKE}."
        ) from error
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"data.vocab_size must be at least {tokenizer.vocab_size} with data.tokenizer="
            f"{one_line(path)}, which has as many tokens, got {vocab_size}; leave it null."
        )
    return Pretrained(content, separator, vocab_size) if vocab_size else tokenizer


def log_facts(tokenizer: Pretrained) -> None:
    """Logs the size, the separator, and whether bits per byte are exact."""
    log.info(
        "data.tokenizer: %d tokens; documents are separated by token %d (%s)",
        tokenizer.vocab_size,
        tokenizer.separator,
        one_line(tokenizer.separator_name),
    )
    if (changed := tokenizer.changed_text()) is not None:
        log.info(
            "data.tokenizer: this tokenizer changes some text, for example %s, so bits per byte "
            "are approximate",
            shortened(ascii(changed), 60),
        )


def _file(path: str) -> Path:
    """The path of the tokenizer.json."""
    named = expand_home("data.tokenizer", path)
    refuse_escaping_path(named, f"data.tokenizer={one_line(path)}")
    try:
        is_folder, exists = named.is_dir(), named.exists()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        is_folder, exists = False, False
    if not exists:
        raise ConfigError(
            "data.tokenizer must be bytes, bpe, or the path of a tokenizer.json or of a folder "
            f"with one, and {one_line(path)} does not exist; nothing is downloaded: {_HOW_TO_MAKE}."
        )
    if is_folder and not (named / TOKENIZER).exists():
        raise ConfigError(
            f"data.tokenizer must be a folder with a tokenizer.json, and {one_line(path)} has "
            f"none: {_HOW_TO_MAKE}."
        )
    file = named / TOKENIZER if is_folder else named
    refuse_escaping_path(file, f"data.tokenizer={one_line(path)}")
    return file


def _read(path: Path, max_bytes: int) -> str:
    # the files of Hugging Face's cache are links
    return read_plain(Path(os.path.realpath(path)), max_bytes).decode("utf-8")


def _separator(folder: Path, texts: dict[int, str]) -> int:
    """The id of the EOS token; the id after all others if there is none."""
    ids = {text: token for token, text in texts.items()}
    names = [name for config in TOKENIZER_CONFIGS for name in _named_eos(folder / config)]
    return next((ids[name] for name in (*names, *_KNOWN_EOS) if name in ids), max(texts) + 1)


def _named_eos(path: Path) -> list[str]:
    try:
        content: Any = json.loads(_read(path, _CONFIG_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} beside it is damaged: {first_line(error)}") from error
    token = content.get("eos_token") if isinstance(content, dict) else None
    if isinstance(token, dict):
        token = token.get("content")
    return [token] if isinstance(token, str) else []
