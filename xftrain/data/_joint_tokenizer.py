"""Prepares several corpora with one tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np

from xftrain.data.corpus.files import PIECE_BYTES
from xftrain.data.tokens.cache import TokenCache, prepare
from xftrain.data.tokens.choice import BPE_SAMPLE_BYTES, TokenizerSpec, choose_tokenizer
from xftrain.data.tokens.stream import TokenStream
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.errors import ConfigError, RunError


def prepare_jointly(
    sources: Mapping[str, Mapping[str, Any]],
    tokenizer: str,
    vocab_size: int | None,
    **options: Any,
) -> dict[str, TokenCache]:
    """Opens the token files of all sources, and makes them first if needed.

    A BPE is trained on a sample of all sources, in which each has its share of the weights. The
    sample is read from token files of bytes, so that the sources are tokenized twice.

    Args:
        sources: the checked sources by name.
        tokenizer: bytes, bpe or a path.
        vocab_size: number of tokens, the separator included; None is the tokenizer's default.
        options: further arguments of `prepare`.

    Raises:
        ConfigError, RunError: see `prepare`; the message names the source.
    """
    choice = choose_tokenizer(tokenizer, vocab_size)  # once, as its file may change meanwhile
    if tokenizer == "bpe" and len(sources) > 1:
        texts = _prepared(sources, choose_tokenizer("bytes"), options)
        weights = {name: source["weight"] for name, source in sources.items()}
        choice = _JointSpec(choice, texts, weights)
    caches = _prepared(sources, choice, options)
    digests = {cache.tokenizer.digest() for cache in caches.values()}
    if len(digests) > 1:
        raise RunError(
            "data.sources: the sources have token files with different vocabularies; delete the "
            f"folders {', '.join(str(cache.folder) for cache in caches.values())}, and they are "
            "made again."
        )
    return caches


def _prepared(
    sources: Mapping[str, Mapping[str, Any]],
    tokenizer: TokenizerSpec,
    options: Mapping[str, Any],
) -> dict[str, TokenCache]:
    caches = {}
    for name, source in sources.items():
        own = {key: source[key] for key in ("text_key", "val_path") if source[key] is not None}
        try:
            caches[name] = prepare(source["path"], tokenizer=tokenizer, **own, **options)
        except (ConfigError, RunError) as error:
            raise type(error)(f"data.sources.{name}: {error}") from error
    return caches


class _JointSpec(TokenizerSpec):
    """A tokenizer that is trained once, on a sample of several corpora.

    Args:
        spec: the tokenizer.
        texts: the corpora by name, as bytes.
        weights: the weights of the corpora.
    """

    def __init__(
        self, spec: TokenizerSpec, texts: Mapping[str, TokenCache], weights: Mapping[str, float]
    ) -> None:
        self._spec, self._texts, self._weights = spec, texts, weights
        self._built: Tokenizer | None = None

    def key(self) -> tuple[Any, ...]:
        corpora = [(self._texts[name].digest, weight) for name, weight in self._weights.items()]
        return ("mixture", *self._spec.key(), sorted(corpora))

    def build(self, pieces: Iterable[bytes], num_bytes: int) -> Tokenizer:
        if self._built is None:
            total = sum(self._weights.values())
            samples = [
                _sample(self._texts[name].streams["train"], BPE_SAMPLE_BYTES * weight / total)
                for name, weight in sorted(self._weights.items())
            ]
            self._built = self._spec.build(chain.from_iterable(samples), 0)
        return self._built

    def file_names(self) -> list[str]:
        return self._spec.file_names()

    def files(self, tokenizer: Tokenizer) -> dict[str, bytes]:
        return self._spec.files(tokenizer)

    def read(self, files: Mapping[str, bytes]) -> Tokenizer:
        # those of the other sources that are still to be prepared have the same one
        self._built = self._spec.read(files)
        return self._built

    def max_tokens(self, num_bytes: int, num_documents: int) -> int:
        return self._spec.max_tokens(num_bytes, num_documents)


def _sample(stream: TokenStream, num_bytes: float) -> Iterator[bytes]:
    """Evenly spread pieces of the text of a stream of bytes."""
    step = max(1, round(stream.tokens.size / max(num_bytes, 1)))
    for begin, end in islice(_pieces(stream), 0, None, step):
        yield stream.tokens[begin:end].astype(np.uint8).tobytes()


def _pieces(stream: TokenStream) -> Iterator[tuple[int, int]]:
    """The ranges of pieces of the documents, each of whole characters."""
    for separator, next_separator in zip(stream.boundaries, stream.boundaries[1:], strict=False):
        begin, stop = int(separator) + 1, int(next_separator)
        while begin < stop:
            end = min(begin + PIECE_BYTES, stop)
            while end < stop and stream.tokens[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            yield begin, end
            begin = end
