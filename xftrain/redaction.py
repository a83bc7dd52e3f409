"""Values that a configuration read from the environment, so that they are never written down.

A configuration names a secret as `${oc.env:TOKEN}`. `read` notes what the variable held, and
`hidden` puts the variable's name in place of that value, in whatever form a text has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from xftrain.spellings import as_paths, folded, spellings

READ: dict[str, str] = {}  # values, by the variable's name
_DECODED: dict[str, tuple[str, ...]] = {}  # texts that `oc.decode` took out of such a value
_WORDS: dict[str, str] = {}  # words that a short value is a part of, and how they are shown
_READ_NOW: set[str] = set()  # variables that were read since this was cleared
# Words that the configuration consists of, as names of options. `config` replaces this.
public_words: Callable[[], Collection[str]] = frozenset

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^\s/]+(?=@)")  # and the user that it is of
_READS = re.compile(r"\$\{oc\.env:\s*(\w+)[^${}]*\}")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_CONSTANTS = {"true", "false", "null", "none", "yes", "no", "on", "off", "inf", "nan"}
_LONG_NUMBER = 6  # digits from which a number is taken for a secret
_SHORT = 4  # below this many characters, a value is looked for as a word of its own


class _Form(NamedTuple):
    """One way in which a text may hold the value of a variable."""

    text: str
    shown: str  # in its place
    is_word: bool  # nothing but a word of its own is meant

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text has it, overlapping places included."""
        for start, end in self._places(text):
            if not self.is_word or not (_joins(text, start) or _joins(text, end)):
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


def read(name: str, *default: str | None, _node_: Any = None) -> str | None:
    """OmegaConf's `oc.env`, with a note of the value; a default is no secret."""
    value: str | None = oc.env(name, *default)
    if name in os.environ:
        READ[name] = os.environ[name]
        _READ_NOW.add(name)
        source = _node_._value() if _node_ is not None else None  # what the value is a part of
        if isinstance(source, str):
            known = _READS.sub(lambda found: os.environ.get(found[1], "\0"), source)
            _note_words(_INTERPOLATION.sub("\0", known), READ)
    return value


def note_joined(cfg: DictConfig) -> None:
    """Notes the words that short secrets are a part of, wherever in a configuration they come from.

    A value may have a secret by way of another key or of a resolver: `/a/pre${tags[0]}suf`.

    Args:
        cfg: as composed; its values are resolved one by one.
    """
    if any(_is_secret(value) and _is_short(value) for value in READ.values()):
        _note_joined(cfg)


def _note_joined(node: DictConfig | ListConfig) -> None:
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_missing(node, key):
            continue
        if not OmegaConf.is_interpolation(node, key):
            if OmegaConf.is_config(child := node[key]):
                _note_joined(child)
            continue
        _READ_NOW.clear()
        try:
            text = str(node[key])
        except Exception as error:  # of any resolver; a sentence is made of it elsewhere
            text = str(error)
        _note_words(text, _READ_NOW)


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
    forms = _forms((*READ.items(), *decoded), tuple(_WORDS.items()), is_value)
    if not forms:
        return text
    names = [place.span() for place in re.finditer(r"\$\{oc\.env:\w+\}", text)]
    found = [
        (start, end, form.shown)
        for form in forms
        for start, end in form.spans(text)
        if not any(first <= start and end <= last for first, last in names)
    ]
    return _replaced(text, found)


def hidden_in_message(text: str) -> str:
    """What `hidden` leaves, with `***` in place of a password in a URL.

    For what is said, and not for what is recorded to be read again: a password that was typed, or
    that a library has read by itself, stands in the errors of drivers and servers.

    Args:
        text: a sentence, a message, a traceback.
    """
    return hidden(_PASSWORD.sub("***", text))


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
        shown = hidden(value, is_value=True)
        # a path that was read may have been brought into another form
        is_other = shown == value and any(READ.get(name) for name in _READS.findall(source))
        return source if is_other else shown
    # a number that was read from a text
    return source if "oc." in source or str(value) in READ.values() else value


def _named(word: str) -> str:
    """A word that is composed of values, each secret in it replaced, as it may hold several."""
    forms = [
        _Form(value, f"${{oc.env:{name}}}", is_word=False)
        for name, value in READ.items()
        if _is_secret(value)
    ]
    return _replaced(word, [(*span, form.shown) for form in forms for span in form.spans(word)])


def _replaced(text: str, found: list[tuple[int, int, str]]) -> str:
    """The text with these places of it replaced."""
    pieces, at = [], 0
    for start, end, shown in _merged(found):
        pieces += [text[at:start], shown]
        at = end
    return "".join([*pieces, text[at:]])


def _merged(found: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Overlapping places as one, shown as the longest, so that no part of any is left."""
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
    """What to look for: all values, or those that are secrets, and words that have one in them."""
    forms = set()
    for name, value in named:
        # a line of a long value may be shown alone
        parts = {value, value.strip(), *(line.strip() for line in value.splitlines())}
        for part in parts | (set(as_paths(value)) if _is_secret(value) else set()):
            if part and (all_ or _is_secret(part)):
                is_word = not all_ and _is_short(part)
                shown = f"${{oc.env:{name}}}"
                forms |= {_Form(text, shown, is_word) for text in spellings(part) if text}
    for word, shown in words:
        forms |= {_Form(text, shown, len(word) < _SHORT) for text in spellings(word)}
    return sorted(forms)


def _note_words(text: str, names: Iterable[str]) -> None:
    """Notes each word of a value of the configuration that a short secret is a part of."""
    for name in names:
        value = READ[name]
        if not (_is_secret(value) and _is_short(value)):
            continue
        for found in re.finditer(re.escape(value), text):
            start, end = found.span()
            while _joins(text, start):
                start -= 1
            while _joins(text, end):
                end += 1
            if (start, end) != found.span():
                _WORDS[text[start:end]] = _named(text[start:end])


def _is_short(value: str) -> bool:
    """Whether a text may have it in it by chance."""
    return len(value) < _SHORT or _NUMBER.fullmatch(value) is not None


def _is_secret(value: str) -> bool:
    if not any(letter.isalnum() for letter in value):
        return len(value.strip()) >= _SHORT  # rather than the path `/`
    if _NUMBER.fullmatch(value):
        return sum(letter.isdigit() for letter in value) >= _LONG_NUMBER
    return value.lower() not in _CONSTANTS and value not in public_words()


def _joins(text: str, at: int) -> bool:
    """Whether a word goes on across a place in a text."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child)
