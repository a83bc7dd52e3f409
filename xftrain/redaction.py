"""Values that a configuration read from the environment, so that they are never written down.

A configuration names a secret as `${oc.env:TOKEN}`. `read` notes what the variable held, and
`hidden` puts the variable's name in place of that value, in whatever form a text has it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from xftrain.printable import one_line, printable

READ: dict[str, str] = {}  # values, by the variable's name
_DECODED: dict[str, tuple[str, ...]] = {}  # texts that `oc.decode` took out of such a value
# Words that the configuration consists of, as names of options. `config` replaces this.
public_words: Callable[[], Collection[str]] = frozenset

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_CONSTANTS = {"true", "false", "null", "none", "yes", "no", "on", "off", "inf", "nan"}
_LONG_NUMBER = 6  # digits from which a number is taken for a secret
_SHORT = 4  # below this many characters, a value is looked for as a word of its own


class _Form(NamedTuple):
    """One way in which a text may hold the value of a variable."""

    text: str
    name: str
    is_word: bool  # nothing but a word of its own is meant

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text has it, overlapping places included."""
        start = text.find(self.text)
        while start >= 0:
            end = start + len(self.text)
            if not self.is_word or not (_joins(text, start) or _joins(text, end)):
                yield start, end
            start = text.find(self.text, start + 1)


def read(name: str, *default: str | None) -> str | None:
    """OmegaConf's `oc.env`, with a note of the value; a default is no secret."""
    value: str | None = oc.env(name, *default)
    if name in os.environ:
        READ[name] = os.environ[name]
    return value


def decode(expr: str | None, *, _parent_: Any, _node_: Any) -> Any:
    """OmegaConf's `oc.decode`, with a note of the texts in a value of the environment."""
    value = oc.decode(expr, _parent_=_parent_, _node_=_node_)
    for name, held in READ.items():
        if expr == held:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            _DECODED[name] = tuple(_texts(plain))
    return value


def digests() -> dict[str, str]:
    """By variable, enough to tell whether a later run reads another value, and too little for it.

    Twelve bits: a value cannot be guessed from them, and one other in 4096 goes unnoticed.
    """
    return {
        name: sha256(f"xftrain {value}".encode()).hexdigest()[:3] for name, value in READ.items()
    }


def hidden(text: str, *, is_value: bool = False) -> str:
    """The text with the names of variables in place of their values.

    Numbers of fewer than six digits, constants such as `true`, and words that the configuration
    itself consists of, such as `sdpa`, are no secrets; any other value is one, however short. One
    of fewer than four characters is looked for as a word of its own.

    Args:
        text: a sentence, a message, a traceback.
        is_value: the text is a value of the configuration that was read from the environment, in
            which every variable's value is looked for.
    """
    decoded = [(name, text) for name, texts in _DECODED.items() for text in texts]
    forms = _forms((*READ.items(), *decoded), is_value)
    if not forms:
        return text
    names = [place.span() for place in re.finditer(r"\$\{oc\.env:\w+\}", text)]
    found = sorted(
        (start, end, form.name)
        for form in forms
        for start, end in form.spans(text)
        if not any(first <= start and end <= last for first, last in names)
    )
    pieces, at = [], 0
    for start, end, name in _merged(found):
        pieces += [text[at:start], f"${{oc.env:{name}}}"]
        at = end
    return "".join([*pieces, text[at:]])


def hidden_throughout(value: Any) -> Any:
    """A plain structure with `hidden` applied to each of its texts, keys included."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {hidden_throughout(key): hidden_throughout(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [hidden_throughout(child) for child in value]
    return value


def without_secrets(cfg: DictConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they may be written down: what comes from the environment by its name alone.

    A value composed with `${oc.env:TOKEN}` has that again in place of what TOKEN holds, also where
    it came by way of another key.

    Args:
        cfg: what the options were composed as.
        options: what `config.validate` made of it, or its plain values.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    return _cleared(options, raw) if READ else dict(options)


def _cleared(value: Any, source: Any) -> Any:
    """A value as its source in the configuration lets it be shown."""
    if isinstance(value, Mapping):
        children = source if isinstance(source, Mapping) else dict.fromkeys(value, source)
        return {key: _cleared(child, children.get(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        parts = source if isinstance(source, list) else [source] * len(value)
        return [_cleared(child, part) for child, part in zip(value, parts, strict=False)]
    if not isinstance(source, str) or "${" not in source:
        return value
    if isinstance(value, str):
        return hidden(value, is_value=True)
    # a number that was read from a text
    return source if "oc." in source or str(value) in READ.values() else value


def _merged(found: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Overlapping places as one, by the name of the longest, so that no part of any is left."""
    while found:
        start, end, name = found.pop(0)
        longest = end - start
        while found and found[0][0] < end:
            other_start, other_end, other = found.pop(0)
            if other_end - other_start > longest:
                longest, name = other_end - other_start, other
            end = max(end, other_end)
        yield start, end, name


@cache
def _forms(named: tuple[tuple[str, str], ...], all_: bool) -> list[_Form]:
    """What to look for: all values, or those that are secrets."""
    forms = set()
    for name, value in named:
        # a line of a long value may be shown alone
        for part in {value, value.strip(), *(line.strip() for line in value.splitlines())}:
            if part and (all_ or _is_secret(part)):
                is_word = not all_ and (len(part) < _SHORT or _NUMBER.fullmatch(part) is not None)
                forms |= {_Form(text, name, is_word) for text in _spellings(part)}
    return sorted(forms)


def _is_secret(value: str) -> bool:
    if not any(letter.isalnum() for letter in value):
        return len(value) >= _SHORT  # rather than the path `/`
    if _NUMBER.fullmatch(value):
        return sum(letter.isdigit() for letter in value) >= _LONG_NUMBER
    return value.lower() not in _CONSTANTS and value not in public_words()


def _spellings(value: str) -> set[str]:
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
            quote(text, errors="surrogateescape"),
            quote(text, safe="", errors="surrogateescape"),
            quote_plus(text, errors="surrogateescape"),
        }
    # an exception in the text of another one
    return unescaped | escaped | {twice for text in escaped for twice in _in_quotes(text)}


def _in_quotes(text: str) -> Iterator[str]:
    """What `repr` makes of a text, by the quotes that stand around it and in it."""
    body = "".join(c if c in "'\"" else repr(c)[1:-1] for c in text)
    for quotes in ("", "'", '"', "'\""):
        yield "".join(f"\\{c}" if c in quotes else c for c in body)


def _joins(text: str, at: int) -> bool:
    """Whether a word goes on across a place in a text."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _texts(key)
            yield from _texts(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child)
