"""Hides secrets: values that a configuration reads from environment variables.

A configuration names a secret as `${oc.env:TOKEN}`. `read` records the variable's value, and
`hidden` replaces that value by the variable's name, in whatever form a text holds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from xftrain.utils.read_variables import READ
from xftrain.utils.spellings import as_paths, folded, spellings
from xftrain.utils.url_passwords import without_passwords

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_READS = re.compile(r"\$\{oc\.env:\s*(\w+)[^${}]*\}")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_CONSTANTS = {"true", "false", "null", "none", "yes", "no", "on", "off", "inf", "nan"}
_LONG_NUMBER = 6  # smallest number of digits of a number that may be a secret
_SHORT = 4  # a shorter value is hidden only as a separate word


class _Form(NamedTuple):
    """One form in which a text may hold the value of a variable."""

    text: str
    shown: str  # the replacement
    is_word: bool  # match only a separate word

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """The (start, end) of all matches in the text, overlapping ones included."""
        for start, end in self._places(text):
            if not self.is_word or not (_is_inside_word(text, start) or _is_inside_word(text, end)):
                yield start, end

    def _places(self, text: str) -> Iterator[tuple[int, int]]:
        pattern = folded(self.text)
        if pattern is None:
            start = text.find(self.text)
            while start >= 0:
                yield start, start + len(self.text)
                start = text.find(self.text, start + 1)
            return
        found = pattern.search(text)
        while found:
            yield found.span()
            found = pattern.search(text, found.start() + 1)


def read_variable(name: str, *default: str | None, _node_: Any = None) -> str | None:
    """OmegaConf's `oc.env`, which also records the value as a secret; a default is no secret."""
    value: str | None = oc.env(name, *default)
    if name in os.environ:
        READ.values[name] = os.environ[name]
        READ.recent.add(name)
        source = _node_._value() if _node_ is not None else None  # the text with the interpolation
        if isinstance(source, str):
            known = _READS.sub(lambda found: os.environ.get(found[1], "\0"), source)
            _record_words(_INTERPOLATION.sub("\0", known), READ.values)
    return value


def record_joined_secrets(cfg: DictConfig) -> None:
    """Records the words of a configuration that contain a short secret.

    A value may contain a secret through another key or a resolver: `/a/pre${tags[0]}suf`.

    Args:
        cfg: the composed configuration, whose values are resolved one by one.
    """
    if any(_is_secret(value) and _is_short(value) for value in READ.values.values()):
        _record_joined(cfg)


def _record_joined(node: DictConfig | ListConfig) -> None:
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_missing(node, key):
            continue
        if not OmegaConf.is_interpolation(node, key):
            if OmegaConf.is_config(child := node[key]):
                _record_joined(child)
            continue
        READ.recent.clear()
        try:
            text = str(node[key])
        except Exception as error:  # any resolver may raise; `config.compose` reports it
            text = str(error)
        _record_words(text, READ.recent)


def decode(expr: str | None, *, _parent_: Any, _node_: Any) -> Any:
    """OmegaConf's `oc.decode`, which also records the strings in a variable's value as secrets."""
    value = oc.decode(expr, _parent_=_parent_, _node_=_node_)
    for name, text in READ.values.items():
        if expr == text:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            READ.decoded[name] = tuple(_texts(plain))
    return value


def digests() -> dict[str, str]:
    """A 12-bit digest of each variable's value, by which a later run detects a changed value.

    A value cannot be recovered from 12 bits, and one change in 4096 is not detected.
    """
    hashes = {name: sha256(f"xftrain {value}".encode()) for name, value in READ.values.items()}
    return {name: found.hexdigest()[:3] for name, found in hashes.items()}


def hidden(text: str, *, is_value: bool = False) -> str:
    """Replaces the values of environment variables in a text by the variables' names.

    Numbers of fewer than six digits, constants such as `true`, and words of the configuration
    itself, such as `sdpa`, are no secrets; any other value is one, however short. A value of
    fewer than four characters is hidden only as a separate word.

    Args:
        text: a sentence, a message or a traceback.
        is_value: whether the text is a configuration value that was read from the environment;
            then the value of every variable is hidden.
    """
    decoded = [(name, text) for name, texts in READ.decoded.items() for text in texts]
    forms = _forms((*READ.values.items(), *decoded), tuple(READ.words.items()), is_value)
    if not forms:
        return text
    ends = {at: n.end() for n in re.finditer(r"\$\{oc\.env:\w+\}", text) for at in range(*n.span())}
    found = [
        (start, end, form.shown)
        for form in forms
        for start, end in form.spans(text)
        if end > ends.get(start, 0)  # not within the name of a variable
    ]
    return _replaced(text, found)


def hidden_in_message(text: str) -> str:
    """Applies `hidden`, and also replaces user and password in a URL by `***`.

    This is for messages, not for records that are read again: errors of drivers and servers may
    show a password that was typed, or that a library read by itself.

    Args:
        text: a sentence, a message or a traceback.
    """
    return hidden(without_passwords(text))


def hidden_throughout(value: Any, hide: Callable[[str], str] = hidden) -> Any:
    """Applies a function such as `hidden` to each string of a plain structure, keys included."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return dict(hidden_throughout(pair, hide) for pair in value.items())
    if isinstance(value, list | tuple):
        return [hidden_throughout(child, hide) for child in value]
    return value


def without_secrets(cfg: DictConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the values in the options that came from environment variables by their names.

    A value that was composed from `${oc.env:TOKEN}` shows that interpolation again in place of
    the value of TOKEN, also if it came through another key.

    Args:
        cfg: the composed configuration.
        options: its checked or plain values.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    return _redacted(options, raw) if READ.values else dict(options)


def _redacted(value: Any, source: Any) -> Any:
    """Redacts a value according to its source, the unresolved node of the configuration."""
    if isinstance(value, Mapping):
        children = source if isinstance(source, Mapping) else dict.fromkeys(value, source)
        return {key: _redacted(child, children.get(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        parts = source if isinstance(source, list) else [source] * len(value)
        return [_redacted(child, part) for child, part in zip(value, parts, strict=False)]
    if not isinstance(source, str) or "${" not in source:
        return value
    if isinstance(value, str):
        shown = hidden(value, is_value=True)
        # a path from a variable may have been normalized
        is_other = shown == value and any(READ.values.get(name) for name in _READS.findall(source))
        return source if is_other else shown
    # a number that was parsed from a variable's text
    return source if "oc." in source or str(value) in READ.values.values() else value


def _word_without_secrets(word: str) -> str:
    """Replaces each secret in a word that is composed of several values."""
    forms = [
        _Form(value, f"${{oc.env:{name}}}", is_word=False)
        for name, value in READ.values.items()
        if _is_secret(value)
    ]
    return _replaced(word, [(*span, form.shown) for form in forms for span in form.spans(word)])


def _replaced(text: str, found: list[tuple[int, int, str]]) -> str:
    """Replaces the found (start, end, replacement) spans of a text."""
    pieces, at = [], 0
    for start, end, shown in _merged(found):
        pieces += [text[at:start], shown]
        at = end
    return "".join([*pieces, text[at:]])


def _merged(found: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Merges overlapping spans, with the replacement of the longest, so that no part is left."""
    found = sorted(found)
    while found:
        start, end, shown = found.pop(0)
        longest = end - start
        while found and found[0][0] < end:
            other_start, other_end, other = found.pop(0)
            if other_end - other_start > longest:
                longest, shown = other_end - other_start, other
            end = max(end, other_end)
        yield start, end, shown


@cache
def _forms(
    named: tuple[tuple[str, str], ...], words: tuple[tuple[str, str], ...], all_: bool
) -> list[_Form]:
    """All forms to search for: of secrets, or of all values, and of words that contain one."""
    forms = set()
    for name, value in named:
        # a message may show a single line of a long value
        parts = {value, value.strip(), *(line.strip() for line in value.splitlines())}
        for part in parts | (set(as_paths(value)) if _is_secret(value) else set()):
            if part and (all_ or _is_secret(part)):
                is_word = not all_ and _is_short(part)
                shown = f"${{oc.env:{name}}}"
                forms |= {_Form(text, shown, is_word) for text in spellings(part) if text}
    for word, shown in words:
        forms |= {_Form(text, shown, len(word) < _SHORT) for text in spellings(word)}
    return sorted(forms)


def _record_words(text: str, names: Iterable[str]) -> None:
    """Records each word of a configuration value that contains a short secret."""
    for name in names:
        value = READ.values[name]
        if not (_is_secret(value) and _is_short(value)):
            continue
        for found in re.finditer(re.escape(value), text):
            start, end = found.span()
            while _is_inside_word(text, start):
                start -= 1
            while _is_inside_word(text, end):
                end += 1
            if (start, end) != found.span():
                READ.words[text[start:end]] = _word_without_secrets(text[start:end])


def _is_short(value: str) -> bool:
    """Whether the value is so short that a text may contain it by chance."""
    return len(value) < _SHORT or _NUMBER.fullmatch(value) is not None


def _is_secret(value: str) -> bool:
    if not any(letter.isalnum() for letter in value):
        return len(value.strip()) >= _SHORT  # excludes the path `/`
    if _NUMBER.fullmatch(value):
        return sum(letter.isdigit() for letter in value) >= _LONG_NUMBER
    return value.lower() not in _CONSTANTS and value not in READ.public_names()


def _is_inside_word(text: str, at: int) -> bool:
    """Whether a position in a text is inside a word."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child)
