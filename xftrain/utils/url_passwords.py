"""Hides passwords in URLs."""

from __future__ import annotations

import re

_WORD = re.compile(r"\S+")


def without_passwords(text: str) -> str:
    """Replaces the user and the password of each URL, however long they are, by `***`.

    They extend from `://` to the last `@` of a word, as a password may contain `@` and `/`.
    The time is linear in the length of the text.
    """
    if "://" not in text:
        return text
    return _WORD.sub(lambda found: _hidden(found[0]), text)


def _hidden(word: str) -> str:
    before, mark, rest = word.partition("://")
    password, at, host = rest.rpartition("@")
    return f"{before}{mark}***{at}{host}" if password else word
