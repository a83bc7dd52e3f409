"""The forms in which a text may be written: escaped, quoted, folded, or as a path."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePath
from urllib.parse import quote, quote_plus

import yaml

from xftrain.utils.printable import one_line, printable

_FOLD = r"(?:\\\n *)?"  # a line break that YAML adds in double quotes, next to an escape

_PIECE = re.compile(  # blanks, a whole escape, or other text
    r"(\s+)|(\\(?:U[0-9A-Fa-f]{8}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|\\|[^\\\s]))|([^\s\\]+|\\)"
)


def spellings(value: str) -> set[str]:
    """The value itself, and its escaped forms in Python, JSON, shells, URLs and our messages."""
    unescaped = {value, " ".join(value.split()), one_line(value), printable(value)}
    escaped = set()
    for text in unescaped:
        escaped |= {
            *_in_quotes(text),
            repr(text.encode("utf-8", "surrogateescape"))[2:-1],
            json.dumps(text)[1:-1],
            json.dumps(text, ensure_ascii=False)[1:-1],
            text.encode("unicode_escape").decode(),
            text.replace("'", "'\"'\"'"),
            text.replace("|", "\\|"),
            *_in_yaml(text),
            quote(text, errors="surrogateescape"),
            quote(text, safe="", errors="surrogateescape"),
            quote_plus(text, errors="surrogateescape"),
        }
    # the repr of an exception inside another exception's text
    return unescaped | escaped | {twice for text in escaped for twice in _in_quotes(text)}


def as_paths(value: str) -> Iterator[str]:
    """The forms of the value as a path: with `~` expanded, absolute, and with links resolved."""
    if "/" in value and "\n" not in value:
        yield str(PurePath(value))
        expanded = os.path.expanduser(value)
        yield from (os.path.normpath(expanded), os.path.abspath(expanded))
        yield os.path.realpath(expanded)


@cache
def folded(text: str) -> re.Pattern[str] | None:
    """A pattern that also matches the text where YAML folded it at a blank or after an escape.

    None if the text has neither, so that it cannot be folded.
    """
    if not text.strip() or not re.search(r"[\s\\]", text):
        return None
    pieces = []
    for blank, escape, plain in _PIECE.findall(text):
        if blank:
            pieces.append(r"(?:\\?\s)+")
        elif escape:
            pieces.append(rf"{_FOLD}{re.escape(escape)}{_FOLD}")
        else:
            pieces.append(re.escape(plain))
    return re.compile("".join(pieces))


def _in_quotes(text: str) -> Iterator[str]:
    """The `repr` of a text, without the outer quotes, for each kind of quotes around it."""
    body = "".join(c if c in "'\"" else repr(c)[1:-1] for c in text)
    for quotes in ("", "'", '"', "'\""):
        yield "".join(f"\\{c}" if c in quotes else c for c in body)


def _in_yaml(text: str) -> Iterator[str]:
    """The text inside YAML's quotes, unfolded."""
    yield text.replace("'", "''")
    if text.isascii() and text.isprintable() and not {'"', "\\"} & set(text):
        return
    for is_unicode in (True, False):
        dumped = yaml.dump(text, default_style='"', allow_unicode=is_unicode, width=math.inf)
        yield dumped.rstrip("\n")[1:-1]
