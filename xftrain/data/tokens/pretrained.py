"""A tokenizer that exists already, from a tokenizer.json of Hugging Face's `tokenizers`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from xftrain.data.tokens.spellings import spelled_tokens
from xftrain.data.tokens.tokenizer import SEPARATOR_TEXT, WHOLE_BYTES, Tokenizer, batches
from xftrain.data.tokens.tokenizer_json import (
    added_tokens,
    parse_tokenizer,
    plain_tokenizer,
    token_ids,
    with_prefix_scheme,
)
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

_BYTE_TOKEN = re.compile(rb"(?<=<0x)(?=[0-9A-F]{2}>)")  # within a text that spells one
_UNUSED = ("version", "truncation", "padding", "post_processor")  # never change how text is encoded
# Texts that a tokenizer without losses gives back: blanks, line breaks, capitals, accents of both
# forms, ligatures, and all bytes that valid UTF-8 can have.
_PROBES = (
    "two  blanks, a\ttab\r\n\n and  ends ",
    "Capitals É",
    "é composed, e\u0301 decomposed, ﬁ",
    "漢字 🙂",
    "".join(map(chr, [*range(1, 0x80), *range(0x80, 0x800, 31), *range(0x800, 0xD800, 2039)])),
    "".join(map(chr, [*range(0xE000, 0x10000, 1021), *range(0x10000, 0x110000, 65521)])),
)


class Pretrained(Tokenizer):
    """A tokenizer from a file; text that spells a special token stays text.

    A document of at most 256 KiB is encoded as a whole. A longer one is cut into parts of at
    most this size, after a line break if there is one.

    Args:
        content: content of the file, as `parse_tokenizer` returns it.
        separator: id of the document separator; an id after all others is a new token.
        vocab_size: V, at least all ids and the separator; None is exactly as many.

    Raises:
        ValueError: `tokenizers` cannot read this, or the sizes do not fit.
    """

    kind = "pretrained"

    def __init__(
        self, content: dict[str, Any], separator: int, vocab_size: int | None = None
    ) -> None:
        with _as_value_error():
            texts = token_ids(content)
            self._json = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            self._json.encode()  # raises if it has half of a surrogate pair
            plain = plain_tokenizer(content, separator)
            size = max(max(texts), separator) + 1
            if not 0 <= separator <= max(texts) + 1 or (vocab_size or size) < size:
                raise ValueError(f"it has {size} tokens, and does not fit the vocabulary")
            first = with_prefix_scheme(plain.content, "first")
            self._model = _load(first or plain.content)
            for added in added_tokens(plain.content):
                if self._model.token_to_id(added["content"]) != added["id"]:
                    raise ValueError(f"the added token {added['id']} would get another id")
            self.spellings = spelled_tokens(content, texts, plain.special_ids, size)
        self._content, self._separator, self._plain = content, separator, plain
        self._vocab_size = vocab_size or size
        self._has_prefix = bool(plain.prefix) or first is not None
        self._has_byte_tokens = bool(content["model"].get("byte_fallback"))
        self._special = {token: texts[token] for token in plain.special_ids if token in texts}

    def __reduce__(self) -> tuple[Any, ...]:
        return Pretrained, (self._content, self._separator, self._vocab_size)

    @classmethod
    def from_json(cls, text: str, separator: int, vocab_size: int) -> Pretrained:
        """Reads what `to_json` wrote; raises ValueError on anything else."""
        return cls(parse_tokenizer(text, vocab_size), separator, vocab_size)

    def to_json(self) -> str:
        """The content of the file, which other programs can read."""
        return self._json

    @property
    def vocab_size(self) -> int:
        """V, the separator included; it may be rounded up."""
        return self._vocab_size

    @property
    def separator(self) -> int:
        """The token id of the document separator."""
        return self._separator

    @property
    def separator_name(self) -> str:
        """The text of the document separator in the file, or `<|end|>` for a new token."""
        return self._special.get(self._separator, SEPARATOR_TEXT)

    def encode_pieces(
        self, pieces: Iterable[bytes], *, continues: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        for batch in batches(self._segments(pieces, continues), _Segment.num_bytes):
            yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[_Segment]) -> Iterator[npt.NDArray[Any]]:
        separator = np.array([self._separator], dtype=np.uint32)
        encoded = {
            begins: iter(self._encode_all([s.text for s in batch if s.begins is begins], begins))
            for begins in (True, False)
        }
        for segment in batch:
            if segment.begins is None:
                yield separator
            elif (tokens := next(encoded[segment.begins])).size:
                yield tokens

    def _encode_all(self, texts: list[bytes], begins: bool) -> list[npt.NDArray[Any]]:
        """Tokens of texts that are the beginning, or a later part, of a document."""
        if not texts:
            return []
        plain, model = self._plain, self._model if begins else self._later_model
        prefix = plain.prefix if begins else ""
        decoded = [
            text if plain.skips_prefix and text.startswith(" ") else prefix + text
            for text in map(bytes.decode, texts)
        ]
        try:
            with _as_value_error():
                encodings = model.encode_batch_fast(decoded, add_special_tokens=False)
        except ValueError as error:
            raise ConfigError(f"data.tokenizer cannot encode a text: {error}.") from error
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    @cached_property
    def _later_model(self) -> tokenizers.Tokenizer:
        """The model for later parts of a document, which have no blank at their beginning."""
        never = with_prefix_scheme(self._plain.content, "never")
        return self._model if never is None else _load(never)

    def _segments(self, pieces: Iterable[bytes], continues: bool) -> Iterator[_Segment]:
        """The texts to encode; `pieces` may be cut anywhere between two characters."""
        text, begins = b"", not continues
        for piece in chain(pieces, (None,)):
            text += piece or b""
            while len(text) > WHOLE_BYTES or (text and not piece):
                cut = _end_of_part(text)
                for part in self._without_byte_tokens(text[:cut]):
                    yield _Segment(part, begins)
                    begins = False
                text = text[cut:]
            if piece == b"":
                yield _Segment(b"", None)
                begins = True

    def _without_byte_tokens(self, text: bytes) -> list[bytes]:
        """Cuts text that spells the token of a byte, as it would become that byte."""
        return _BYTE_TOKEN.split(text) if self._has_byte_tokens else [text]

    def decode(self, tokens: Iterable[int]) -> str:
        """Readable text, without the blank that the tokenizer puts before each document."""
        return self._decoded(tokens, begins=self._has_prefix)

    def decode_rest(self, tokens: Iterable[int]) -> str:
        """Readable text of tokens that continue others, whose first blank is part of the text."""
        return self._decoded(tokens, begins=False)

    def _decoded(self, tokens: Iterable[int], *, begins: bool) -> str:
        shown = []
        for token in tokens:
            text = self._shown(token)
            shown.append(text.removeprefix(b" ") if begins else text)
            begins = self._has_prefix and token == self._separator
        return b"".join(shown).decode("utf-8", errors="replace")

    def _shown(self, token: int) -> bytes:
        if token == self._separator:
            return SEPARATOR_TEXT.encode()
        if token >= len(self.spellings):  # the size of the vocabulary may be rounded up
            return "\N{REPLACEMENT CHARACTER}".encode()
        return self._special.get(token, "").encode() or self.spellings[token]

    def changed_text(self) -> str | None:
        """A text that is not encoded as it is; None if the spellings of tokens are exact."""
        for text in _PROBES:
            pieces = self.encode_pieces([text.encode()])
            spelled = b"".join(self.spellings[token] for part in pieces for token in part)
            if spelled.removeprefix(b" " if self._has_prefix else b"") != text.encode():
                return text
        return None

    def digest(self) -> str:
        """SHA-256 of everything that determines how text is encoded and decoded."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = {key: value for key, value in self._content.items() if key not in _UNUSED}
        content = json.dumps(["pretrained", parts, self._separator], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class _Segment(NamedTuple):
    """A text to encode; whether it begins a document, None for a separator."""

    text: bytes
    begins: bool | None

    def num_bytes(self) -> int:
        """The size of the text."""
        return len(self.text)


def _end_of_part(text: bytes) -> int:
    """Where a document is cut: after a line break if it is long, else between two characters."""
    if len(text) <= WHOLE_BYTES:
        return len(text)
    if newline := text.rfind(b"\n", 0, WHOLE_BYTES) + 1:
        return newline
    end = WHOLE_BYTES
    while text[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _load(content: dict[str, Any]) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer.from_str(json.dumps(content))
    model.encode_special_tokens = True  # special tokens in a text are text
    return model


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Raises ValueError in place of what `tokenizers` and a file of another form raise.

    A panic of its Rust code is a BaseException, which would otherwise end the process.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(one_line(str(error))[:200]) from error
