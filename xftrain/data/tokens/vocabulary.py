"""Saves the vocabulary with a run, so that sampling needs no training data.

A checkpoint holds the kind, the size and a digest, all of them plain values. The tokens of a BPE
and of a tokenizer from a file are in `tokenizer.json` beside it. Both may come from anyone, so all
of it is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES, NUM_BYTES_VOCAB, Bpe, Bytes
from xftrain.errors import ConfigError
from xftrain.interfaces import Vocabulary
from xftrain.utils.files import read_plain

TOKENIZER_FILE = "tokenizer.json"  # beside the checkpoints of a run
_MAX_VOCAB = 1 << 31
_DAMAGED = "ckpt holds a damaged description of its vocabulary: give another one."


class Integers:
    """A vocabulary of numbers, written in decimal.

    Args:
        vocab_size: V; the numbers are below it.
    """

    kind = "integers"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode(self, tokens: list[int]) -> str:
        """The numbers, separated by blanks."""
        return " ".join(str(token) for token in tokens)

    def encode(self, text: str) -> list[int]:
        """Reads numbers that are separated by blanks."""
        words = text.split()
        if any(not word.isascii() or not word.isdigit() for word in words):
            raise ConfigError(f"prompt must be numbers with blanks between them, got {text!r}.")
        tokens = [int(word) for word in words]
        if large := [token for token in tokens if token >= self.vocab_size]:
            raise ConfigError(f"prompt must have numbers below {self.vocab_size}, got {large[0]}.")
        return tokens

    def digest(self) -> str:
        """SHA-256 of the kind and the size, which determine this vocabulary."""
        return hashlib.sha256(f"integers below {self.vocab_size}".encode()).hexdigest()


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
    """The description of a vocabulary for checkpoints, as plain values; `rebuild` reads it."""
    description: dict[str, Any] = {
        "kind": str(vocabulary.kind),
        "vocab_size": int(vocabulary.vocab_size),
        "digest": str(vocabulary.digest()),
    }
    if isinstance(vocabulary, Pretrained):
        description["separator"] = vocabulary.separator  # another file of its folder may name it
    return description


def is_trained_bpe(vocabulary: Vocabulary, saved: Mapping[str, Any]) -> bool:
    """Whether a vocabulary from a file is the BPE that a run trained and wrote into this file.

    Args:
        vocabulary: the vocabulary.
        saved: what `describe` returned for that of the run.
    """
    if not isinstance(vocabulary, Pretrained) or saved.get("kind") != Bpe.kind:
        return False
    try:
        bpe = Bpe.from_json(vocabulary.to_json())
    except ValueError:
        return False
    return bpe.separator == vocabulary.separator and bpe.digest() == saved.get("digest")


def tokenizer_json(vocabulary: Vocabulary) -> str | None:
    """The content of `tokenizer.json`; None if the description is complete without it."""
    return vocabulary.to_json() if isinstance(vocabulary, Bpe | Pretrained) else None


def rebuild(description: Any, folder: Path) -> Vocabulary:
    """Rebuilds a vocabulary from the description that `describe` returned.

    Args:
        description: description in the checkpoint.
        folder: folder of the checkpoint; a BPE or a tokenizer from a file is read from
            `tokenizer.json` in it.

    Raises:
        ConfigError: the description is damaged, or the file is missing, damaged or another one.
    """
    saved = description if isinstance(description, Mapping) else {}
    kind, size = saved.get("kind"), saved.get("vocab_size")
    if type(kind) is not str or type(size) is not int or not 0 < size < _MAX_VOCAB:
        raise ConfigError(_DAMAGED)
    found: Vocabulary
    if kind == "bpe":
        found = _read_vocabulary(folder, lambda text: Bpe.from_json(text, size))
    elif kind == "pretrained":
        separator = saved.get("separator")
        if type(separator) is not int:
            raise ConfigError(_DAMAGED)
        found = _read_vocabulary(folder, lambda text: Pretrained.from_json(text, separator, size))
    elif kind == "bytes":
        found = Bytes()
    elif kind == "integers":
        found = Integers(size)
    else:
        raise ConfigError(
            f"ckpt has a vocabulary of the kind {kind[:40]!r}, which cannot be rebuilt from a "
            "checkpoint: a data source of your own can be sampled from where its vocabulary is one "
            "of integers, bytes, bpe or pretrained (docs/extending.md)."
        )
    description = describe(found)
    if description != {key: saved.get(key) for key in description}:
        in_file = tokenizer_json(found) is not None
        where = f"{folder / TOKENIZER_FILE} is" if in_file else f"the vocabulary {kind} here is"
        raise ConfigError(
            f"{where} not the vocabulary that ckpt was trained with: take both from the folder of "
            "the same run."
        )
    return found


def old_checkpoint_vocabulary(config: Mapping[str, Any], num_steps: int) -> Vocabulary:
    """The vocabulary of a checkpoint that an old version saved without one, by its configuration.

    Args:
        config: the checkpoint's configuration; no path in it is opened.
        num_steps: step of the checkpoint.

    Raises:
        ConfigError: the run must be resumed once, which saves its vocabulary.
    """
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    name, size = data.get("name"), data.get("vocab_size")
    if name in ("counting", "counting_packed") and type(size) is int and 0 < size < _MAX_VOCAB:
        return Integers(size)
    if name == "text" and data.get("tokenizer") == "bytes" and size in (None, NUM_BYTES_VOCAB):
        return Bytes()
    if name is None:
        raise ConfigError(
            "ckpt holds no vocabulary, because the data source of its run has none: add the "
            "attribute vocabulary to its class (docs/extending.md) and resume the run with "
            f"max_steps={num_steps + 1} or more."
        )
    raise ConfigError(
        "ckpt holds no vocabulary, because it was saved before vocabularies were saved with runs: "
        f"resume its run with max_steps={num_steps + 1} or more, which saves {TOKENIZER_FILE} "
        "beside the checkpoints, and sample from the new one."
    )


def _read_vocabulary(folder: Path, read: Callable[[str], Vocabulary]) -> Vocabulary:
    path = folder / TOKENIZER_FILE
    try:
        return read(read_plain(path, MAX_FILE_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing, which holds the vocabulary of ckpt: copy it from the "
            "checkpoints folder of its run."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} must be the vocabulary of ckpt, and cannot be read ({reason}): copy it "
            "from the checkpoints folder of its run."
        ) from error
