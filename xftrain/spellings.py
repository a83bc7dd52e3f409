"""The forms in which one text is written: escaped, quoted, folded, and as a path."""

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

from xftrain.printable import one_line, printable

_FOLD = r"(?:\\\n *)?"  # of a text in double quotes, beside an escape

_PIECE = re.compile(  # blanks, a whole escape, or neither
    r"(\s+)|(\\(?:U[0-9A-Fa-f]{8}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|\\|[^\\\s]))|([^\s\\]+|\\)"
)


def spellings(value: str) -> set[str]:
    """The value as it is, and escaped as Python, JSON, a shell, a URL and our own messages do."""
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
    # an exception in the text of another one
    return unescaped | escaped | {twice for text in escaped for twice in _in_quotes(text)}


def as_paths(value: str) -> Iterator[str]:
    """The value as Python and the system write it, should it be a path."""
    if "/" in value and "\n" not in value:
        yield str(PurePath(value))
        expanded = os.path.expanduser(value)
        yield from (os.path.normpath(expanded), os.path.abspath(expanded))
        yield os.path.realpath(expanded)


@cache
def folded(text: str) -> re.Pattern[str] | None:
    """What finds a text also where YAML broke the line at a blank or after an escape.

    None where it has neither: then it is found as it is.
    """
    if not text.strip() or not re.search(r"[\s\\]", text):
        return None
    pieces = []
    for blank, escape, other in _PIECE.findall(text):
        if blank:
            pieces.append(r"(?:\\?\s)+")
        elif escape:
            pieces.append(rf"{_FOLD}{re.escape(escape)}{_FOLD}")
        else:
            pieces.append(re.escape(other))
    return re.compile("".join(pieces))


def _in_quotes(text: str) -> Iterator[str]:
    """What `repr` makes of a text, by the quotes that stand around it and in it."""
    body = "".join(c if c in "'\"" else repr(c)[1:-1] for c in text)
    for quotes in ("", "'", '"', "'\""):
        yield "".join(f"\\{c}" if c in quotes else c for c in body)


def _in_yaml(text: str) -> Iterator[str]:
    """What stands between the quotes of YAML, not folded."""
    yield text.replace("'", "''")
    if text.isascii() and text.isprintable() and not {'"', "\\"} & set(text):
        return
    for is_unicode in (True, False):
        made = yaml.dump(text, default_style='"', allow_unicode=is_unicode, width=math.inf)
        yield made.rstrip("\n")[1:-1]
