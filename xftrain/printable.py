"""Text of others, as from a corpus, a checkpoint or a path, made safe for a terminal and a log."""

from __future__ import annotations

import unicodedata

# Control characters move the cursor, change colors or the window's title; the others reorder or
# hide what is read. Surrogates stand for bytes of a file name and cannot be encoded.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with visible escapes in place of all characters that a terminal would obey.

    Args:
        text: what a stranger wrote.
        keep: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in keep and unicodedata.category(c) in _UNSAFE
        else c
        for c in text
    )


def one_line(text: str) -> str:
    """The same as a single line, for a sentence."""
    return printable(text, keep="")
