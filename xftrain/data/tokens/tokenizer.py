"""Lossless tokenizers: bytes, and a byte-level BPE.

The document separator is the last token of either vocabulary and stands for no bytes. The
`tokenizers` model does not know it, so a text that happens to spell it cannot produce it.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

SEPARATOR_TEXT = "<|end|>"
NUM_BYTES_VOCAB = 257  # the byte values and the separator; a BPE starts from the same
WHOLE_BYTES = 256 << 10  # a document up to this size is encoded as a whole, if pieces matter
BATCH_BYTES = 256 << 10  # of texts that are encoded at a time; encodings take 30 times as much
BATCH_TEXTS = 512
# A merge inside a word costs the length of that word: 4 MiB of DNA without a space trained for 68 s
# as words of 64 KiB and for 10 s as words of 256 bytes. Only the pre-tokenizer can tell the words,
# since a sequence of blanks, line breaks or control characters is a word too.
_LONG_WORD = tokenizers.Regex(".{256}")
MAX_FILE_BYTES = 64 << 20  # maximum size of tokenizer.json; a million tokens take 40 MiB
# Commas and brackets in its JSON. Each precedes a value that may take 30 times its size in memory;
# a token has one of them, and the merge that makes the token has three.
_PARTS_OF_TOKEN, _OTHER_PARTS, _MAX_PARTS = 4, 1000, 8_000_000
_STRING = re.compile('"[^"]*"')
_MAX_TOKEN_BYTES = 4096  # bytes; a word of training has at most 256
# Parts of a tokenizer.json, each of which must be null, absent or one of these.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncation": (),
    "padding": (),
    "added_tokens": ([],),
    "normalizer": (),
    "post_processor": (),
}
_NEUTRAL_MODEL: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (),
    "unk_token": (),
    "continuing_subword_prefix": ("",),
    "end_of_word_suffix": ("",),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


_T = TypeVar("_T")


class Tokenizer(ABC):
    """A vocabulary of text.

    Attributes:
        kind: name of the kind of vocabulary in checkpoints.
        spellings: the bytes each token stands for; the separator has none. If the size of the
            vocabulary is rounded up, the additional tokens have no entry.
    """

    kind: ClassVar[str]
    spellings: list[bytes]

    @property
    def vocab_size(self) -> int:
        """V, the separator included."""
        return len(self.spellings)

    @property
    def separator(self) -> int:
        """The token id of the document separator."""
        return len(self.spellings) - 1

    @abstractmethod
    def encode_pieces(
        self, pieces: Iterable[bytes], *, continues: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        """Tokens of the pieces of documents, lazily and in order.

        No array is empty, and one holds either a separator alone or tokens of one document.

        Args:
            pieces: valid UTF-8; an empty piece separates documents.
            continues: whether the first piece continues a document.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of everything that determines how text is encoded and decoded."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text.

        Raises:
            ConfigError: the text has bytes from the shell that are not UTF-8.
        """
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"prompt must be valid UTF-8, got {text!r}.") from error
        tokens = [int(token) for part in self.encode_pieces([content]) for token in part]
        return tokens or [self.separator]  # some tokenizers encode no blanks

    def decode(self, tokens: Iterable[int]) -> str:
        """Readable text; invalid UTF-8 and tokens outside the vocabulary show as U+FFFD."""
        return b"".join(self._shown(token) for token in tokens).decode("utf-8", errors="replace")

    def _shown(self, token: int) -> bytes:
        if token == self.separator:
            return SEPARATOR_TEXT.encode()
        if token > self.separator:  # the vocabulary of a model may be rounded up
            return "\N{REPLACEMENT CHARACTER}".encode()
        return self.spellings[token]


class Bytes(Tokenizer):
    """Every byte is a token; token 256 separates documents."""

    kind = "bytes"

    def __init__(self) -> None:
        self.spellings = [*(bytes([byte]) for byte in range(256)), b""]

    def encode_pieces(
        self, pieces: Iterable[bytes], *, continues: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        separator = np.array([self.separator], dtype=np.uint16)
        for piece in pieces:
            yield np.frombuffer(piece, dtype=np.uint8) if piece else separator

    def digest(self) -> str:
        """SHA-256 of the vocabulary's name, since all byte vocabularies are equal."""
        return hashlib.sha256(b"bytes and a separator").hexdigest()


class Bpe(Tokenizer):
    """Byte-level BPE by `tokenizers`; any text can be encoded, and decodes to itself.

    Args:
        texts: the tokens by their ids, in the characters in which a byte-level BPE writes bytes.
        merges: pairs of tokens, in the order of merging.

    Raises:
        ValueError: these are not a byte-level BPE.
    """

    kind = "bpe"

    def __init__(self, texts: list[str], merges: list[tuple[str, str]]) -> None:
        byte_of = byte_of_character()
        ids = {text: token for token, text in enumerate(texts)}
        if len(ids) != len(texts):
            raise ValueError("a token appears twice in the vocabulary")
        if not byte_of.keys() <= ids.keys():
            raise ValueError("a byte has no token")
        if not all(0 < len(text) <= _MAX_TOKEN_BYTES for text in texts):
            raise ValueError(f"a token is empty or longer than {_MAX_TOKEN_BYTES} bytes")
        if not byte_of.keys() >= set().union(*texts):
            raise ValueError("a token has a character that stands for no byte")
        if not all(a in ids and b in ids and a + b in ids for a, b in merges):
            raise ValueError("a merge has no token")
        self._texts, self._merges = texts, merges
        self._model = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
        self._model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._model.decoder = decoders.ByteLevel()  # for other programs that read the file
        self.spellings = [*(bytes(byte_of[c] for c in text) for text in texts), b""]

    @classmethod
    def train(cls, pieces: Iterable[bytes], vocab_size: int) -> Bpe:
        """Trains at most `vocab_size` tokens, the separator included; small texts give fewer."""
        model = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces_of_words = pre_tokenizers.Split(_LONG_WORD, "isolated")
        model.pre_tokenizer = pre_tokenizers.Sequence([words, pieces_of_words])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(byte_of_character()),
        )
        model.train_from_iterator((piece.decode() for piece in pieces), trainer)
        model.pre_tokenizer = words
        return cls.from_json(model.to_str())

    @classmethod
    def from_json(cls, text: str, vocab_size: int | None = None) -> Bpe:
        """Reads what `to_json` wrote; raises ValueError on anything else.

        The file may come from anyone: `tokenizers` receives only its tokens and merges, never a
        regular expression, a template or a size from the file.

        Args:
            text: content of `tokenizer.json`.
            vocab_size: V of the vocabulary that is expected, the separator included.
        """
        try:
            _check_extent(text, vocab_size)
            return cls(*_tokens_and_merges(json.loads(text)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = one_line(str(error))[:200]
            raise ValueError(f"not a byte-level vocabulary: {reason}") from error

    def to_json(self) -> str:
        """The JSON format of the `tokenizers` library, which other programs can read."""
        return self._model.to_str()

    def encode_pieces(
        self, pieces: Iterable[bytes], *, continues: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        separator = np.array([self.separator], dtype=np.uint32)
        for batch in batches(pieces, len):
            encodings = self._model.encode_batch_fast([piece.decode() for piece in batch])
            for piece, encoding in zip(batch, encodings, strict=True):
                yield np.array(encoding.ids, dtype=np.uint32) if piece else separator

    def digest(self) -> str:
        """SHA-256 of the tokens and merges, whatever the formatting of their file."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = json.dumps(["byte-level bpe", self._texts, self._merges])
        return hashlib.sha256(content.encode()).hexdigest()


def batches(items: Iterable[_T], num_bytes: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Groups texts so that the encodings of a group take little memory.

    Args:
        items: texts, or what holds one.
        num_bytes: gives the size of an item.
    """
    batch: list[_T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += num_bytes(item)
        if size >= BATCH_BYTES or len(batch) == BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_extent(text: str, vocab_size: int | None) -> None:
    """Refuses JSON that has far more values than the tokens and merges of a vocabulary."""
    limit = _MAX_PARTS
    if vocab_size is not None:
        limit = min(limit, _OTHER_PARTS + _PARTS_OF_TOKEN * vocab_size)
    without_quotes = text.replace("\\\\", "").replace('\\"', "")  # those within strings
    outside = _STRING.sub("", without_quotes)
    if sum(map(outside.count, ",[{")) > limit:
        raise ValueError("it has more values than the vocabulary has tokens and merges")


def _tokens_and_merges(content: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens and merges of a tokenizer.json, with all other parts checked."""
    model = content["model"]
    for part, neutral in ((content, _NEUTRAL), (model, _NEUTRAL_MODEL)):
        for key, values in neutral.items():
            if (value := part.get(key)) is not None and value not in values:
                raise ValueError(f"{key} is {value!r}")
    for key in ("pre_tokenizer", "decoder"):
        part = content.get(key) or ({} if key == "pre_tokenizer" else {"type": "ByteLevel"})
        # other keys of a decoder have no effect
        wanted = {"add_prefix_space": False, "use_regex": True} if key == "pre_tokenizer" else {}
        if part.get("type") != "ByteLevel" or any(part.get(k, v) != v for k, v in wanted.items()):
            raise ValueError(f"{key} is {part!r}")
    ids = sorted((token, text) for text, token in model["vocab"].items())
    if any(type(token) is not int or token != index for index, (token, _) in enumerate(ids)):
        raise ValueError("the token ids are not 0, 1, 2, ...")
    merges = []
    for merge in model["merges"]:
        a, b = merge.split(" ") if isinstance(merge, str) else merge  # older files have strings
        if not isinstance(a, str) or not isinstance(b, str):
            raise ValueError("a merge is no pair of tokens")
        merges.append((a, b))
    return [text for _, text in ids], merges


def byte_of_character() -> dict[str, int]:
    """The 256 characters in which a byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}
