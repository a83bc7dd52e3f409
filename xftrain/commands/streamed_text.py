"""Shows a text on the terminal while it is generated."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from xftrain.generation.continuation import Continuation
from xftrain.utils import redaction
from xftrain.utils.printable import printable


class StreamedText:
    """Writes what is new of one text, in whole characters, to standard output."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, continuations: Sequence[Continuation]) -> None:
        """Writes what has been added since the last call."""
        (one,) = continuations
        text = redaction.hidden(printable(one.settled_text))
        if not text.startswith(self._shown):  # a secret is complete, and hidden from here on
            sys.stdout.write("\n")
            self._shown = ""
        sys.stdout.write(text[len(self._shown) :] + ("\n" if one.reason is not None else ""))
        sys.stdout.flush()
        self._shown = text
