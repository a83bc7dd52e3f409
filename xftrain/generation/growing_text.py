"""The text of a growing list of tokens, of which only the last tokens are decoded again.

A token may be part of a character, and a tokenizer may treat the first token of a text in a way of
its own, such as dropping its blank. So the last tokens are decoded together with tokens before
them, the overlap, whose text is then removed (as text-generation-inference does,
https://github.com/huggingface/text-generation-inference).
"""

from __future__ import annotations

from collections.abc import Callable

Decode = Callable[[list[int]], str]

_OVERLAP = 16  # tokens; a character has at most four
_MAX_TAIL = 3 * _OVERLAP  # tokens after the overlap
_TRIES = 4  # ends of the overlap to try, as a character must not extend over it


class GrowingText:
    """The text of tokens, equal to `decode(tokens)` if a token's text depends on few around it.

    For other decoders, whose texts of the overlap differ, all tokens are decoded each time. A
    difference that the overlap does not show is only corrected by `finish`.

    Args:
        decode: the text of tokens.

    Attributes:
        text: the text so far.
        num_kept: number of characters that the last update left as they were.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self.text = ""
        self.num_kept = 0
        self._num_final = 0  # characters of the tokens up to the end of the overlap
        self._begin = self._end = 0  # the tokens of the overlap
        self._overlap = ""  # their text

    def update(self, tokens: list[int]) -> str:
        """The text of the tokens, which begin with those of the last call."""
        window = self._decode(tokens[self._begin :])
        if not window.startswith(self._overlap):
            self._restart()
            window = self._decode(tokens)
        self.num_kept = self._num_final
        self.text = self.text[: self.num_kept] + window[len(self._overlap) :]
        if len(tokens) - self._end >= _MAX_TAIL:
            self._advance(tokens)
        return self.text

    def finish(self, tokens: list[int]) -> str:
        """The text of the tokens, all decoded at once."""
        text = self._decode(tokens)
        if text != self.text:
            self.text = text
            self._restart()
        return text

    def _restart(self) -> None:
        """Makes the next update decode all tokens."""
        self.num_kept = self._num_final = self._begin = self._end = 0
        self._overlap = ""

    def _advance(self, tokens: list[int]) -> None:
        """Moves the overlap towards the last token, where the text is the same with it."""
        for end in range(len(tokens) - _OVERLAP, len(tokens) - _OVERLAP - _TRIES, -1):
            begin = end - _OVERLAP
            window, overlap = self._decode(tokens[begin:]), self._decode(tokens[begin:end])
            # the beginning of the overlap has another text where it begins no document
            unlike = self._decode(tokens[begin : begin + _OVERLAP // 2])
            is_alike = len(unlike) <= len(overlap) and self.text.endswith(window[len(unlike) :])
            if is_alike and window.startswith(overlap):
                self._num_final = len(self.text) - (len(window) - len(overlap))
                self._begin, self._end, self._overlap = begin, end, overlap
                return
