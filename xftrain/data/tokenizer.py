"""Text to tokens and back without loss: the bytes themselves, or a byte-level BPE.

The document separator is the last token of either vocabulary and stands for no bytes. The
`tokenizers` model does not know it, so a text that happens to spell it cannot produce it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

SEPARATOR_TEXT = "<|end|>"
NUM_BYTES_VOCAB = 257  # the byte values and the separator; a BPE starts from the same
_PIECES_AT_ONCE = 64  # encoded in parallel by `tokenizers`
# Merging inside one word costs its length for every merge: 4 MiB of DNA without a space trained
# for 68 s as 64 KiB words and for 10 s as words of 256 characters.
_LONG_WORD = re.compile(r"\S{256}")


class Tokenizer(ABC):
    """A vocabulary.

    Attributes:
        spellings: the bytes each token stands for; the last token is the separator and has none.
    """

    spellings: list[bytes]

    @property
    def vocab_size(self) -> int:
        return len(self.spellings)

    @property
    def separator(self) -> int:
        return len(self.spellings) - 1

    @abstractmethod
    def encode(self, pieces: Iterable[bytes]) -> Iterator[npt.NDArray[Any]]:
        """Tokens of each piece of valid UTF-8, lazily and in order; an empty piece separates."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Text for a person: bytes that are no UTF-8 and tokens past the vocabulary as U+FFFD."""
        return b"".join(self._shown(token) for token in tokens).decode("utf-8", errors="replace")

    def _shown(self, token: int) -> bytes:
        if token == self.separator:
            return SEPARATOR_TEXT.encode()
        if token > self.separator:  # a model's vocabulary may be rounded up past the data's
            return "\N{REPLACEMENT CHARACTER}".encode()
        return self.spellings[token]


class Bytes(Tokenizer):
    """Every byte is its own token, 256 separates documents."""

    def __init__(self) -> None:
        self.spellings = [*(bytes([byte]) for byte in range(256)), b""]

    def encode(self, pieces: Iterable[bytes]) -> Iterator[npt.NDArray[Any]]:
        separator = np.array([self.separator], dtype=np.uint16)
        for piece in pieces:
            yield np.frombuffer(piece, dtype=np.uint8) if piece else separator


class Bpe(Tokenizer):
    """Byte-level BPE by `tokenizers`; any text can be encoded, and decodes to itself."""

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        self._model = model
        byte_of = _byte_of_character()
        vocab = sorted(model.get_vocab().items(), key=lambda item: item[1])
        if [token for _, token in vocab] != list(range(len(vocab))):
            raise ValueError("the token ids are not 0, 1, 2, ...")
        self.spellings = [*(bytes(byte_of[c] for c in text) for text, _ in vocab), b""]

    @classmethod
    def train(cls, pieces: Iterable[bytes], vocab_size: int) -> Bpe:
        """At most `vocab_size` tokens, the separator included; fewer where the text has fewer."""
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(_byte_of_character()),
        )
        texts = (_LONG_WORD.sub("\\g<0>\0", piece.decode()).split("\0") for piece in pieces)
        model.train_from_iterator(texts, trainer)
        return cls(model)

    @classmethod
    def from_json(cls, text: str) -> Bpe:
        """Read what `to_json` wrote; raises ValueError on anything else."""
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ValueError(f"not a byte-level vocabulary: {error}") from error

    def to_json(self) -> str:
        """The form of `tokenizers` itself, readable by any of its users."""
        return self._model.to_str()

    def encode(self, pieces: Iterable[bytes]) -> Iterator[npt.NDArray[Any]]:
        separator = np.array([self.separator], dtype=np.uint32)
        remaining = iter(pieces)
        while batch := list(islice(remaining, _PIECES_AT_ONCE)):
            encodings = self._model.encode_batch_fast([piece.decode() for piece in batch])
            for piece, encoding in zip(batch, encodings, strict=True):
                yield np.array(encoding.ids, dtype=np.uint32) if piece else separator


def _byte_of_character() -> dict[str, int]:
    """The 256 characters in which a byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
