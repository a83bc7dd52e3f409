"""Where a generated text ends: at a token, at a string, or at the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from xftrain.generation.growing_text import Decode, GrowingText

Reason = Literal["length", "token", "string"]
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # shown for the first bytes of a character
_MAX_INCOMPLETE = 3  # bytes of a character without its last byte


@dataclass(frozen=True)
class Stops:
    """What ends a text before its number of tokens.

    Attributes:
        token: a token that ends the text and is no part of it, such as the separator of documents;
            None for no such token.
        strings: texts that end the text and are no part of it, wherever the borders of tokens are.
        decode: the text of tokens, needed for `strings`.
    """

    token: int | None = None
    strings: tuple[str, ...] = ()
    decode: Decode | None = None


@dataclass
class Continuation:
    """The tokens that continue a prompt.

    Attributes:
        stops: what ends it.
        tokens: the tokens, without the one that ended it.
        text: their text, cut before a stop string; empty without `stops.decode`.
        reason: what ended it: `length`, `token` or `string`; None while it grows.
        num_read: number of tokens that were drawn for it, also after its end.
    """

    stops: Stops
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: Reason | None = None
    num_read: int = 0
    _growing: GrowingText | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        decode = self.stops.decode
        self._growing = None if decode is None else GrowingText(decode)

    def add(self, tokens: Sequence[int], *, is_last: bool) -> None:
        """Adds tokens, until one ends the text.

        Args:
            tokens: the next tokens.
            is_last: whether no more tokens will follow.
        """
        self.num_read += len(tokens)
        if self.reason is not None:
            return
        # one by one if a string may end the text, since no token after the string belongs to it
        size = 1 if self.stops.strings else max(1, len(tokens))
        parts = [list(tokens[at : at + size]) for at in range(0, len(tokens), size)]
        self.reason = next(filter(None, map(self._extend, parts)), None)
        if self.reason is None and is_last:
            self.reason = self._finish("length")

    def _extend(self, tokens: list[int]) -> Reason | None:
        """Adds tokens; returns what ends the text with them."""
        end = self.stops.token
        ends = end is not None and end in tokens
        self.tokens += tokens[: tokens.index(end)] if end is not None and ends else tokens
        if self._growing is not None:
            self.text = self._growing.update(self.tokens)
            if self._first_stop(self._growing.num_kept) is not None:
                return self._finish("token" if ends else None)
        return self._finish("token") if ends else None

    def _finish(self, reason: Reason | None) -> Reason | None:
        """Decodes all tokens, and cuts the text before a stop string; returns what ends it."""
        if self._growing is None:
            return reason
        self.text = self._growing.finish(self.tokens)
        first = self._first_stop(0)
        if first is None:
            return reason
        self.text = self.text[:first]
        return "string"

    def _first_stop(self, num_searched: int) -> int | None:
        """Where the first stop string begins; None if there is none.

        Args:
            num_searched: number of characters, from the first one, that contain none.
        """
        strings = self.stops.strings
        places = [self.text.find(stop, max(0, num_searched - len(stop) + 1)) for stop in strings]
        return min((place for place in places if place >= 0), default=None)

    @property
    def settled_text(self) -> str:
        """The beginning of the text that later tokens cannot change."""
        if self.reason is not None:
            return self.text
        text = self.text
        for _ in range(_MAX_INCOMPLETE):
            text = text.removesuffix(_INCOMPLETE)
        held = max((_overlap(text, stop) for stop in self.stops.strings), default=0)
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop string begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
