"""The tokens of a corpus whose token files are made meanwhile: those that are there already."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xftrain.data.tokens.background import Background
from xftrain.data.tokens.bigram import BigramCounts
from xftrain.data.tokens.cache import Preparation, TokenCache
from xftrain.data.tokens.published import Beginning, Verified, read_sizes
from xftrain.data.tokens.stream import TokenStream
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES, Tokenizer
from xftrain.errors import RunError
from xftrain.utils import heartbeat
from xftrain.utils.files import read_plain
from xftrain.utils.processes import rank

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

log = logging.getLogger(__name__)

_POLL_S = 0.2
_LOG_S = 2.0  # shorter waits are not logged
_BIGRAM_TOKENS = 1 << 20


class GrowingTokens:
    """The beginnings of the token streams of a corpus, which grow until its token files are whole.

    Rank 0 makes the token files in a process of its own, unless they exist; the other ranks read
    what is there.

    Args:
        preparation: the corpus.

    Attributes:
        streams: the beginnings of the streams, and at last all of them.
        whole: the token files, when they are whole.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self.streams: dict[Split, Beginning] | dict[Split, TokenStream] = {}
        self.whole = preparation.open_cache()
        self._background: Background | None = None
        self._tokenizer: Tokenizer | None = None
        self._verified = Verified()
        if self.whole is not None:
            self._set_whole(self.whole)
            log.info("data.path: %s", self.whole.summary)
        elif rank() == 0:
            self._background = Background(preparation)

    def __reduce__(self) -> tuple[type[GrowingTokens], tuple[Preparation]]:
        return GrowingTokens, (self._preparation,)

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the tokens, once there are any."""
        assert self._tokenizer is not None
        return self._tokenizer

    def wait_until(self, is_there: Callable[[], bool], what: str) -> None:
        """Waits until a part of the streams is there, or all of them are.

        Args:
            is_there: whether it is; called when the streams have grown.
            what: the part, for the log.

        Raises:
            Exception: what has gone wrong with the preparation.
        """
        if self._background is not None and self.whole is None:
            self._background.is_running()  # raises its error, although the text may be there
        if self.streams and is_there():
            return
        begin, is_logged = time.monotonic(), False
        while self.whole is None:
            if self._grow():
                heartbeat.beat()
                if self.whole is not None or is_there():
                    break
            if not is_logged and time.monotonic() > begin + _LOG_S:
                is_logged = True
                log.info("data.stream: waiting for the preparation of %s", what)
            time.sleep(_POLL_S)
        if is_logged:
            log.info("data.stream: waited %.0f s for %s", time.monotonic() - begin, what)

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the tokens, as they are not yet there, and the vocabulary."""
        text, vocabulary = self._preparation.content_digest(), self.tokenizer.digest()
        return hashlib.sha256(f"stream {text} {vocabulary}".encode()).hexdigest()

    @cached_property
    def bigram_counts(self) -> npt.NDArray[np.int64]:
        """Byte-bigram counts of the first million training tokens."""
        spellings, separator = self.tokenizer.spellings, self.tokenizer.separator
        tokens = self.streams["train"].tokens[:_BIGRAM_TOKENS]
        places = np.flatnonzero(tokens == separator)
        pieces: list[bytes] = []
        for begin, end in zip(places, [*places[1:], tokens.size], strict=True):
            pieces += [b"", b"".join(spellings[t] for t in tokens[begin + 1 : end].tolist())]
        if pieces and not pieces[-1]:
            pieces.pop()
        counted = BigramCounts()
        for _ in counted.count_pieces(pieces):
            pass
        return counted.counts

    def damaged_error(self) -> RunError:
        """The error for a batch with tokens outside the vocabulary."""
        return RunError(
            f"data.cache_dir: the token files in {str(self._preparation.folder.parent)!r} are "
            "damaged: a token is outside the vocabulary; delete that folder, and they are made "
            "again."
        )

    def _set_whole(self, cache: TokenCache) -> None:
        self.whole, self.streams, self._tokenizer = cache, cache.streams, cache.tokenizer

    def _num_tokens(self) -> int:
        return sum(stream.tokens.size for stream in self.streams.values())

    def _grow(self) -> bool:
        """Whether more of the streams is there than before."""
        is_running = self._background is None or self._background.is_running()
        if not is_running or self._preparation.folder.exists():
            cache = self._preparation.open_cache()
            if cache is not None:
                self._set_whole(cache)
                return True
            if not is_running:
                raise RunError(
                    f"data.cache_dir: the token files in {str(self._preparation.folder)!r} are "
                    "gone or damaged; run again, which makes them again."
                )
        folder = self._preparation.folder
        for making in folder.parent.glob(f".{folder.name}-*"):
            try:
                sizes = read_sizes(making)
                if sum(num_tokens for num_tokens, *_ in sizes.values()) <= self._num_tokens():
                    continue
                spec = self._preparation.spec
                tokenizer = self._tokenizer or spec.read(
                    {name: read_plain(making / name, MAX_FILE_BYTES) for name in spec.file_names()}
                )
                streams = self._verified.read(making, tokenizer, sizes)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is being written, or has become whole or been removed
            self._tokenizer, self.streams = tokenizer, streams
            return True
        return False
