"""The tokenizer that data.tokenizer and data.vocab_size choose, before any text is read."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from xftrain.data.corpus.files import PIECE_BYTES
from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer import NUM_BYTES_VOCAB, Bpe, Bytes, Tokenizer
from xftrain.data.tokens.tokenizer_files import log_facts, read_pretrained
from xftrain.errors import ConfigError

log = logging.getLogger(__name__)

BPE_SAMPLE_BYTES = 64 << 20  # of training text; more takes longer without a better vocabulary
_BPE_VOCAB = 8192
_MAX_TOKENS_OF_BYTE = 64
_TOKENIZER_FILE = "tokenizer.json"


class TokenizerSpec(ABC):
    """A tokenizer as configured, which is built or read when token files are."""

    @abstractmethod
    def key(self) -> tuple[Any, ...]:
        """Everything that determines the tokens besides the text, with a stable `repr`."""

    @abstractmethod
    def build(self, pieces: Iterable[bytes], num_bytes: int) -> Tokenizer:
        """Makes the tokenizer.

        Args:
            pieces: the training text in pieces of valid UTF-8; read lazily, and only if needed.
            num_bytes: number of bytes of all pieces, at least approximately.
        """

    @abstractmethod
    def file_names(self) -> list[str]:
        """Names of the files that hold the tokenizer beside its token files."""

    @abstractmethod
    def files(self, tokenizer: Tokenizer) -> dict[str, bytes]:
        """The content of these files, by name."""

    @abstractmethod
    def read(self, files: Mapping[str, bytes]) -> Tokenizer:
        """Reads the tokenizer back from the content of its files, which may come from anyone.

        Raises:
            ValueError: they are damaged, or hold another tokenizer.
        """

    def max_tokens(self, num_bytes: int, num_documents: int) -> int:
        """An upper bound of the number of tokens of a text, separators included."""
        return num_bytes + num_documents + 1  # a token stands for at least one byte


@dataclass(frozen=True)
class _BytesSpec(TokenizerSpec):
    def key(self) -> tuple[Any, ...]:
        return "bytes", NUM_BYTES_VOCAB

    def build(self, pieces: Iterable[bytes], num_bytes: int) -> Tokenizer:
        return Bytes()

    def file_names(self) -> list[str]:
        return []

    def files(self, tokenizer: Tokenizer) -> dict[str, bytes]:
        return {}

    def read(self, files: Mapping[str, bytes]) -> Tokenizer:
        return Bytes()


@dataclass(frozen=True)
class _BpeSpec(TokenizerSpec):
    vocab_size: int

    def key(self) -> tuple[Any, ...]:
        return "bpe", self.vocab_size

    def build(self, pieces: Iterable[bytes], num_bytes: int) -> Tokenizer:
        step = -(-num_bytes // BPE_SAMPLE_BYTES)
        if step > 1:
            log.info(
                "data.tokenizer: the vocabulary is trained on one piece of text in every %d, of %d "
                "KiB each, because the training text has %d MiB",
                step,
                PIECE_BYTES >> 10,
                num_bytes >> 20,
            )
        tokenizer = Bpe.train(islice(pieces, 0, None, max(step, 1)), self.vocab_size)
        if tokenizer.vocab_size < self.vocab_size:
            log.info(
                "data.vocab_size: the training text gives %d tokens, not %d: no further pair of "
                "tokens occurs twice in it",
                tokenizer.vocab_size,
                self.vocab_size,
            )
        return tokenizer

    def file_names(self) -> list[str]:
        return [_TOKENIZER_FILE]

    def files(self, tokenizer: Tokenizer) -> dict[str, bytes]:
        assert isinstance(tokenizer, Bpe)
        return {_TOKENIZER_FILE: tokenizer.to_json().encode()}

    def read(self, files: Mapping[str, bytes]) -> Tokenizer:
        tokenizer = Bpe.from_json(files[_TOKENIZER_FILE].decode("utf-8"), self.vocab_size)
        if tokenizer.vocab_size > self.vocab_size:  # the model has one embedding per token
            raise ValueError(
                f"{_TOKENIZER_FILE} has a vocabulary of more than {self.vocab_size} tokens"
            )
        return tokenizer


@dataclass(frozen=True)
class _PretrainedSpec(TokenizerSpec):
    tokenizer: Pretrained

    def key(self) -> tuple[Any, ...]:
        return "pretrained", self.tokenizer.digest(), self.tokenizer.vocab_size

    def build(self, pieces: Iterable[bytes], num_bytes: int) -> Tokenizer:
        return self.tokenizer

    def file_names(self) -> list[str]:
        return [_TOKENIZER_FILE]

    def files(self, tokenizer: Tokenizer) -> dict[str, bytes]:
        return {_TOKENIZER_FILE: self.tokenizer.to_json().encode()}

    def read(self, files: Mapping[str, bytes]) -> Tokenizer:
        if files[_TOKENIZER_FILE] != self.tokenizer.to_json().encode():
            raise ValueError(f"{_TOKENIZER_FILE} is not the tokenizer of data.tokenizer")
        return self.tokenizer

    def max_tokens(self, num_bytes: int, num_documents: int) -> int:
        # normalizers may write one character as several
        return _MAX_TOKENS_OF_BYTE * super().max_tokens(num_bytes, num_documents)


def choose_tokenizer(tokenizer: str, vocab_size: int | None = None) -> TokenizerSpec:
    """Checks data.tokenizer and data.vocab_size, and returns what they choose.

    Args:
        tokenizer: bytes; bpe, a byte-level BPE trained on the training text; or the path of a
            tokenizer.json, or of a folder that holds one.
        vocab_size: None is 257 for bytes, 8192 for a BPE, and the largest id and one for a file.

    Raises:
        ConfigError: the size does not suit the tokenizer, or its file cannot be read.
    """
    if tokenizer == "bytes":
        if vocab_size not in (None, NUM_BYTES_VOCAB):
            raise ConfigError(
                f"data.vocab_size must be {NUM_BYTES_VOCAB} with data.tokenizer=bytes (the byte "
                f"values and the document separator), got {vocab_size}; leave it null or choose "
                "data.tokenizer=bpe."
            )
        return _BytesSpec()
    if tokenizer == "bpe":
        if vocab_size is not None and vocab_size < NUM_BYTES_VOCAB:
            raise ConfigError(
                f"data.vocab_size must be at least {NUM_BYTES_VOCAB} with data.tokenizer=bpe (the "
                f"byte values and the document separator), got {vocab_size}; null is {_BPE_VOCAB}."
            )
        return _BpeSpec(vocab_size or _BPE_VOCAB)
    pretrained = read_pretrained(tokenizer, vocab_size)
    log_facts(pretrained)
    return _PretrainedSpec(pretrained)
