"""Text of others, as from a corpus, a checkpoint or a path, made safe for a terminal and a log."""

from __future__ import annotations

import unicodedata

# Control characters move the cursor, change colors or the window's title; the others reorder or
# hide what is read. Surrogates stand for bytes of a file name and cannot be encoded.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MAX_LINE, _MAX_BLOCK = 20_000, 1_000_000  # characters of a message


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


def short_line(text: str) -> str:
    """The same, cut where it is longer than anybody reads, as with a name from a foreign file."""
    return _cut(one_line(text), _MAX_LINE)


def shortened(text: str, limit: int) -> str:
    """A text of at most so many characters, with three dots where more were left out.

    Secrets have to be hidden before: afterwards the halves of one are not found.
    """
    return text if len(text) <= limit else f"{text[:limit]}..."


def block(text: str) -> str:
    """A message of several lines, as a table or a sample; lines after the first are indented.

    So no line of it can be taken for a message of its own, which begins with the time.
    """
    lines = (_cut(line, _MAX_LINE) for line in _cut(printable(text), _MAX_BLOCK).split("\n"))
    return "\n  ".join(lines)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
