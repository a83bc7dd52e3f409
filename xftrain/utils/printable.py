"""Makes untrusted text, as from a corpus, a checkpoint or a path, safe for terminals and logs."""

from __future__ import annotations

import unicodedata

# Control characters move the cursor, change colors or the window's title; format characters reorder
# or hide text. Surrogates stand for bytes of a file name and cannot be encoded.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MAX_LINE, _MAX_BLOCK = 20_000, 1_000_000  # maximum length of a line and of a block, in characters


def printable(text: str, keep: str = "\n\t") -> str:
    """Replaces all characters that control a terminal by visible escapes.

    Args:
        text: untrusted text.
        keep: characters that are not escaped.
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
    """Makes text printable as a single line, for use in a sentence."""
    return printable(text, keep="")


def short_line(text: str) -> str:
    """Makes text printable as a single short line, for example a name from an untrusted file."""
    return _cut(one_line(text), _MAX_LINE)


def shortened(text: str, limit: int) -> str:
    """Cuts a text to `limit` characters, with three dots where characters were left out.

    Secrets must be hidden first, since a secret that is cut in two would not be found.
    """
    return text if len(text) <= limit else f"{text[:limit]}..."


def block(text: str) -> str:
    """Makes a text of several lines printable, with all lines but the first indented.

    No line can then be mistaken for a separate log message, which begins with the time.
    """
    lines = (_cut(line, _MAX_LINE) for line in _cut(printable(text), _MAX_BLOCK).split("\n"))
    return "\n  ".join(lines)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
